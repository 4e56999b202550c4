#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rescue::fuzzing::etcd_messages(data));
