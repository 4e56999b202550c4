//! CRC-32C (Castagnoli) as etcd chains it through its log.

use crc::{CRC_32_ISCSI, Crc, Table};

static CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// The checksum of what gave `previous`, then `bytes` (Go's `crc32.Update`).
pub fn append(previous: u32, bytes: &[u8]) -> u32 {
    // The crate wants the register as it was before inversion and reflection.
    let mut digest = CRC.digest_with_initial((!previous).reverse_bits());
    digest.update(bytes);
    digest.finalize()
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
