#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flanneld_fuzz::subnet_env(input));
