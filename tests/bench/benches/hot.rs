//! Micro-benchmarks of the hot functions: `cargo bench -p culvert-bench`. Not a test: look at them, compare by ratio.

use std::time::Duration;

use culvert_hot::{Control, PIECE, Packets, Storm, Tunnel, exchanges, sent, served};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

/// Exchanges in one go: one alone would be set-up.
const EXCHANGES: usize = 100;

mod engine {
    use super::*;

    #[divan::bench(args = [64, PIECE])]
    fn seal(bencher: Bencher<'_, '_>, length: usize) {
        let mut tunnel = Tunnel::up().unwrap();
        let bytes = vec![0x55; length];
        bencher.counter(BytesCount::new(length)).bench_local(|| tunnel.seal_one(0, black_box(&bytes)).unwrap());
    }

    #[divan::bench(args = [64, PIECE])]
    fn seal_and_open(bencher: Bencher<'_, '_>, length: usize) {
        let mut tunnel = Tunnel::up().unwrap();
        let bytes = vec![0x55; length];
        bencher.counter(BytesCount::new(length)).bench_local(|| tunnel.pass_one(0, black_box(&bytes)).unwrap());
    }

    #[divan::bench]
    fn handshake_both_ends(bencher: Bencher<'_, '_>) {
        let mut tunnel = Tunnel::up().unwrap();
        bencher.bench_local(|| {
            tunnel.wait(Duration::from_secs(10));
            tunnel.shake_hands();
        });
        assert!(tunnel.handshakes() > 1);
    }

    /// What a relay does in a storm: an initiation comes, its response goes.
    #[divan::bench(sample_size = 32, sample_count = 20)]
    fn handshake_responder(bencher: Bencher<'_, '_>) {
        let mut storm = Storm::of(1024).unwrap();
        bencher.counter(ItemsCount::new(1_usize)).bench_local(|| assert!(storm.answer_one()));
    }
}

mod hop {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    /// Read a head, check and rewrite it, answer.
    #[divan::bench(args = [1024, 65_536])]
    fn front(bencher: Bencher<'_, '_>, body: usize) {
        let runtime = runtime();
        bencher
            .counter(ItemsCount::new(EXCHANGES))
            .bench_local(|| runtime.block_on(served(EXCHANGES, black_box(body))).unwrap());
    }

    /// Write a head, read the answer.
    #[divan::bench]
    fn back(bencher: Bencher<'_, '_>) {
        let runtime = runtime();
        bencher.counter(ItemsCount::new(EXCHANGES)).bench_local(|| runtime.block_on(sent(EXCHANGES)).unwrap());
    }

    /// Both hops and the engine between them; no QUIC.
    #[divan::bench]
    fn whole_exchange(bencher: Bencher<'_, '_>) {
        let runtime = runtime();
        bencher.counter(ItemsCount::new(EXCHANGES)).bench_local(|| runtime.block_on(exchanges(EXCHANGES)).unwrap());
    }
}

mod inner {
    use super::*;

    #[divan::bench]
    fn wrap_and_open(bencher: Bencher<'_, '_>) {
        let mut packets = Packets::of(1300).unwrap();
        bencher.bench_local(|| packets.wrap_one().unwrap());
    }

    #[divan::bench]
    fn split_and_join(bencher: Bencher<'_, '_>) {
        let mut packets = Packets::of(1300).unwrap();
        bencher.bench_local(|| packets.split_one().unwrap());
    }
}

mod control {
    use super::*;

    #[divan::bench]
    fn ping(bencher: Bencher<'_, '_>) {
        let mut control = Control::of(1).unwrap();
        bencher.bench_local(|| control.ping_one(black_box(7)).unwrap());
    }

    #[divan::bench(args = [1, 64])]
    fn announce(bencher: Bencher<'_, '_>, services: usize) {
        let mut control = Control::of(services).unwrap();
        bencher.bench_local(|| control.announce_one().unwrap());
    }
}
