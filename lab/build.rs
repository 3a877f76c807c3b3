//! Campaigns start the flanneld that was built beside them, which the Makefile builds. Cargo names it only to tests of
//! flanneld's own package.

use std::path::PathBuf;

fn main() {
    // target/PROFILE/build/NAME/out
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let programs = out.ancestors().nth(3).expect("a directory of the profile");
    println!("cargo:rustc-env=CARGO_BIN_EXE_flanneld={}", programs.join("flanneld").display());
    println!("cargo:rerun-if-changed=build.rs");
}
