//! Integers and short texts out of on-disk structures. Nothing here can run past the end of its
//! input: a field that is not there reads as zero, and the parser's own checks (magic numbers,
//! bounds) decide what that means.

use crate::base::escaping::escape;

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    at.checked_add(N)
        .and_then(|end| bytes.get(at..end))
        .and_then(|slice| slice.try_into().ok())
        .unwrap_or([0; N])
}

/// Little-endian 16 bits at `at`.
pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

/// Little-endian 32 bits at `at`.
pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

/// Little-endian 64 bits at `at`.
pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// Big-endian 16 bits at `at`.
pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// Big-endian 32 bits at `at`.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// Big-endian 64 bits at `at`.
pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// Whether `magic` stands at `at`.
pub(super) fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    at.checked_add(magic.len())
        .and_then(|end| bytes.get(at..end))
        == Some(magic)
}

/// A fixed-width text field: up to its first NUL, control characters escaped, `None` when empty.
pub(super) fn text(bytes: &[u8], at: usize, width: usize) -> Option<String> {
    let field = at.checked_add(width).and_then(|end| bytes.get(at..end))?;
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(width);
    let text = String::from_utf8_lossy(field.get(..end)?);
    (!text.is_empty()).then(|| escape(&text))
}

/// Sixteen bytes as a UUID in the usual form (`8-4-4-4-12`, lower case); `None` when all are zero
/// or not there.
pub(super) fn uuid(bytes: &[u8], at: usize) -> Option<String> {
    let raw = at.checked_add(16).and_then(|end| bytes.get(at..end))?;
    if raw.iter().all(|byte| *byte == 0) {
        return None;
    }
    let mut text = String::with_capacity(36);
    for (index, byte) in raw.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_beyond_the_end_are_zero() {
        assert_eq!(le32(&[1, 2, 3], 0), 0);
        assert_eq!(le16(&[1, 2, 3], 1), 0x0302);
        assert_eq!(be64(&[], usize::MAX), 0);
        assert!(!has(b"ab", 1, b"bc"));
        assert_eq!(uuid(&[0; 16], 0), None);
        assert_eq!(text(b"a\x1b\0x", 0, 4).as_deref(), Some("a\\u{1b}"));
    }
}
