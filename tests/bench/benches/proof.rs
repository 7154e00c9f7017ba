//! What a proof costs a request: `cargo bench -p culvert-bench --bench proof`. Not a test: compare with `hop::whole_exchange`
//! of the others, which is a request without one.

use culvert_hot::proof::{Stand, request};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

fn bench(bencher: Bencher<'_, '_>, name: &str, length: usize) {
    let stand = Stand::with(name).unwrap();
    bencher
        .counter(ItemsCount::new(1_usize))
        .counter(BytesCount::new(length))
        .with_inputs(|| request(length))
        .bench_local_values(|(parts, body)| black_box(stand.prove(parts, body).unwrap()));
}

#[divan::bench(args = ["none", "header", "jwt-kept", "jwt-eddsa", "jwt-es256"])]
fn field(bencher: Bencher<'_, '_>, name: &str) {
    bench(bencher, name, 0);
}

#[divan::bench(args = [0, 1024, 65_536])]
fn aws_sigv4_signed(bencher: Bencher<'_, '_>, length: usize) {
    bench(bencher, "sigv4", length);
}

#[divan::bench(args = [65_536])]
fn aws_sigv4_unsigned(bencher: Bencher<'_, '_>, length: usize) {
    bench(bencher, "sigv4-unsigned", length);
}

#[divan::bench(args = [0, 1024, 65_536])]
fn http_signature_hmac(bencher: Bencher<'_, '_>, length: usize) {
    bench(bencher, "signature-hmac", length);
}

#[divan::bench(args = ["signature-ed25519", "signature-ecdsa"])]
fn http_signature_own_key(bencher: Bencher<'_, '_>, name: &str) {
    bench(bencher, name, 0);
}
