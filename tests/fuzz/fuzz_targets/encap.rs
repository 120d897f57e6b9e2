#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| samport_invariants::encap::check(bytes));
