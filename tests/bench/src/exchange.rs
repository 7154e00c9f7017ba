//! Does one hot thing a number of times, for counting instructions: `culvert-exchange NAME COUNT`. `list` names them, each
//! with two counts that the guard takes the difference of.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use culvert_hot::proof::Stand;
use culvert_hot::{Control, PIECE, Packets, Storm, SuperPacket, Tunnel, exchanges, sent, served, streamed};

/// What is counted: a name, few and many.
const LIST: [(&str, usize, usize); 21] = [
    ("exchange", 100, 600),
    ("front", 100, 600),
    ("front-64k", 50, 250),
    ("back", 100, 600),
    ("quic", 200, 1200),
    ("quic-c16", 320, 1920),
    ("quic-1m", 8, 40),
    ("seal", 100, 1100),
    ("seal-open", 100, 1100),
    ("handshake", 4, 24),
    ("respond", 4, 24),
    ("wrap", 100, 1100),
    ("fragment", 100, 1100),
    ("tun-cut", 10, 110),
    ("tun-join", 10, 110),
    ("control", 100, 1100),
    ("proof-header", 100, 1100),
    ("proof-jwt-kept", 100, 1100),
    ("proof-jwt-eddsa", 20, 120),
    ("proof-sigv4", 20, 120),
    ("proof-signature-hmac", 20, 120),
];

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let name = args.next().context("which?")?;
    if name == "list" {
        for (name, few, many) in LIST {
            println!("{name} {few} {many}");
        }
        return Ok(());
    }
    let count: usize = args.next().context("how often?")?.parse()?;
    match name.as_str() {
        "exchange" => on_a_runtime(exchanges(count)),
        "front" => on_a_runtime(served(count, 1024)),
        "front-64k" => on_a_runtime(served(count, 64 * 1024)),
        "back" => on_a_runtime(sent(count)),
        "quic" => on_a_still_clock(streamed(count, 1024, 1)),
        "quic-c16" => on_a_still_clock(streamed(count, 1024, 16)),
        "quic-1m" => on_a_still_clock(streamed(count, 1 << 20, 1)),
        "seal" => {
            let mut tunnel = Tunnel::up()?;
            (0..count).try_for_each(|_| tunnel.seal_one(0, &[0x55; PIECE]).map(drop))
        }
        "seal-open" => {
            let mut tunnel = Tunnel::up()?;
            (0..count).try_for_each(|_| tunnel.pass_one(0, &[0x55; PIECE]).map(drop))
        }
        "handshake" => handshakes(count),
        "respond" => {
            // The same set-up for both counts, so that the difference is the answers alone.
            let mut storm = Storm::of(32)?;
            (0..count).try_for_each(|_| storm.answer_one().then_some(()).context("an initiation was not answered"))
        }
        "wrap" => {
            let mut packets = Packets::of(1300)?;
            (0..count).try_for_each(|_| packets.wrap_one())
        }
        "fragment" => {
            let mut packets = Packets::of(1300)?;
            (0..count).try_for_each(|_| packets.split_one())
        }
        "tun-cut" => {
            let mut packet = SuperPacket::new()?;
            (0..count).try_for_each(|_| packet.cut_one())
        }
        "tun-join" => {
            let mut packet = SuperPacket::new()?;
            (0..count).try_for_each(|_| packet.join_one())
        }
        "control" => {
            let mut control = Control::of(4)?;
            (0..count).try_for_each(|id| {
                control.ping_one(id as u64)?;
                control.announce_one()
            })
        }
        proof if proof.starts_with("proof-") => {
            let stand = Stand::with(proof.trim_start_matches("proof-"))?;
            (0..count).try_for_each(|_| stand.prove_one(1024))
        }
        other => bail!("there is no {other:?}"),
    }
}

fn handshakes(count: usize) -> Result<()> {
    let mut tunnel = Tunnel::up()?;
    let before = tunnel.handshakes();
    for _ in 0..count {
        tunnel.wait(Duration::from_secs(10));
        tunnel.shake_hands();
    }
    let done = tunnel.handshakes() - before;
    ensure!(done == count as u64, "{done} handshakes instead of {count}");
    Ok(())
}

fn on_a_runtime(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(work)
}

fn on_a_still_clock(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(work)
}
