//! What is installed beside the program, and how: manual pages, completions, `make install`, the static build and the
//! Debian package. Nothing here touches the machine outside of directories that the tests make.

mod completions;
mod deb;
#[allow(dead_code, unused_imports, reason = "a lab for several test programs, none of which needs all of it")]
#[path = "../it/lab/mod.rs"]
mod lab;
mod manual;
mod package;
#[path = "../store/pki.rs"]
mod pki;
mod static_build;
mod tree;
