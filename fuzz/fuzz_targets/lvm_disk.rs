#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rescue::fuzzing::lvm_disk(data));
