//! What is installed beside the program, and how: manual pages, completions, `make install`, the static build and the
//! Debian package. Nothing here touches the machine outside of directories that the tests make.

mod completions;
mod deb;
mod manual;
mod package;
mod tree;
