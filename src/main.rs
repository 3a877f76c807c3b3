#![deny(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    static_glibc::resolve_names_without_plugins();
    flanneld::cli::main()
}

/// Set-up of a program that brings glibc along (`make static`).
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
#[allow(unsafe_code, reason = "no crate wraps this function of glibc")]
mod static_glibc {
    use std::ffi::{CStr, c_char, c_int};

    unsafe extern "C" {
        /// glibc's, of `nss.h`: in place of what `/etc/nsswitch.conf` says.
        fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    }

    /// `/etc/hosts` and DNS are part of this program. Other ways to look names up are libraries of the host, which belong
    /// to its glibc and may crash with ours: they are not asked.
    pub fn resolve_names_without_plugins() {
        let (database, services): (&CStr, &CStr) = (c"hosts", c"files dns");
        // SAFETY: both strings end in NUL and live for ever, and no other thread runs yet. It only fails for a database
        // that glibc does not know.
        unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    }
}
