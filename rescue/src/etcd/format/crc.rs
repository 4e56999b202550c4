//! CRC-32C (Castagnoli) as etcd chains it through its log.

/// The checksum of what gave `previous`, then `bytes` (Go's `crc32.Update`). By the processor's own
/// instruction where it has one: a log and a database of gigabytes are gone through.
pub fn append(previous: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(previous, bytes)
}

#[cfg(test)]
mod tests {
    use super::append;

    #[test]
    fn is_castagnoli_and_chains() {
        assert_eq!(append(0, b"123456789"), 0xe306_9283);
        assert_eq!(append(append(0, b"1234"), b"56789"), 0xe306_9283);
        assert_eq!(append(0x1234_5678, b""), 0x1234_5678);
    }
}
