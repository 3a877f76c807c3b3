//! The memory of this process.

/// From so many objects on it is worth looking after what they leave behind.
pub const MANY: usize = 1000;

/// Gives free memory back to the kernel. By itself the C library gives back only what lies at the end of the heap, so
/// that what a list of all peers once took would be ours for ever.
#[allow(unsafe_code, reason = "no crate wraps malloc_trim")]
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, and touches only memory that nobody uses.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
