#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| belfry_tests::fuzz_properties::main_cf(bytes));
