//! Has the linker put what a connector runs side by side (`idle.ld`). The system makes code resident 64 KiB at a time around
//! what is run, so functions that are spread over the file keep most of it in memory.

use std::env;
use std::path::Path;

/// Names functions by patterns without their hashes; written by `tests/bench/order`. What it names and what is not there does
/// no harm.
const SCRIPT: &str = "idle.ld";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SCRIPT}");
    let says = |name: &str, text: &str| env::var(name).is_ok_and(|value| value.contains(text));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(SCRIPT);
    // GNU ld and LLVM's take the script, mold does not.
    let takes_scripts = says("CARGO_CFG_TARGET_OS", "linux") && !says("CARGO_ENCODED_RUSTFLAGS", "mold");
    if takes_scripts && says("PROFILE", "release") && script.exists() {
        println!("cargo:rustc-link-arg-bin=culvert-connector=-T{}", script.display());
    }
}
