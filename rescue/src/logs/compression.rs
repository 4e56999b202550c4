//! The compressed values of a journal, each at most [`LIMIT`] bytes of what it holds.

use std::io::Read;
use std::num::NonZeroUsize;

use xz4rust::{DICT_SIZE_MIN, XzDecoder, XzReader};

/// The most that is taken of one value. Nobody reads a longer line of a log.
pub(super) const LIMIT: usize = 64 << 10;

/// The largest window of an XZ stream, bytes.
const XZ_WINDOW: usize = 8 << 20;

/// The same of a Zstandard frame, as a power of two.
const ZSTD_WINDOW_LOG: u32 = 23;

/// How a value is compressed (`OBJECT_COMPRESSED_*` in systemd's journal-def.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// An XZ stream: systemd up to 246.
    Xz,
    /// A number of 64 bits, the size, then an LZ4 block.
    Lz4,
    /// A Zstandard frame: systemd from 246.
    Zstd,
}

impl Compression {
    /// By the flags of an object; `None`: it is not compressed.
    pub fn of(flags: u8) -> Option<Self> {
        match flags & 7 {
            1 => Some(Self::Xz),
            2 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The first [`LIMIT`] bytes of the value; `None` where it is damaged, or an LZ4 block holds
    /// more.
    pub fn unpack(self, packed: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Xz => first(xz(packed)),
            Self::Lz4 => lz4(packed),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).ok()?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).ok()?;
                first(decoder)
            }
        }
    }
}

/// As much as is wanted of a stream. A stream that ends in damage gives what came before it.
fn first(stream: impl Read) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = stream.take(LIMIT as u64).read_to_end(&mut bytes);
    (read.is_ok() || !bytes.is_empty()).then_some(bytes)
}

/// journald packs with a window of 256 KiB at most (preset 0); a crafted value must not ask for
/// gigabytes.
fn xz(packed: &[u8]) -> impl Read {
    let decoder = XzDecoder::in_heap_with_alloc_dict_size(DICT_SIZE_MIN, XZ_WINDOW);
    let buffer = NonZeroUsize::new(8192).unwrap_or(NonZeroUsize::MIN);
    let packed = std::io::Cursor::new(packed.to_vec());
    XzReader::new_with_buffer_size_and_decoder(packed, buffer, decoder)
}

fn lz4(packed: &[u8]) -> Option<Vec<u8>> {
    let (size, block) = packed.split_first_chunk::<8>()?;
    let size = usize::try_from(u64::from_le_bytes(*size)).ok()?;
    if size > LIMIT {
        return None;
    }
    let mut bytes = vec![0; size];
    let written = lz4_flex::block::decompress_into(block, &mut bytes).ok()?;
    bytes.truncate(written);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    // "MESSAGE=" and 20 times "a line of a log that repeats, ": `xz --check=none`, python3-lz4's
    // block format, `zstd`.
    const XZ: &str = "fd377a585a000000ff12d941020021010c0000008f98419ce0025f00305d00269146acd06f74b\
        8a5fe8b3d384e222eb932c453389d4f3856414ae40e9deaedb40b0d711bfb502e0301b2dd7a7de00000000144e0\
        040000002fcc2af0a8000afc020000000000595a";
    const LZ4: &str = "ff174d4553534147453d61206c696e65206f662061206c6f672074686174207265706561747\
        32c201e00ffff24506174732c20";
    const ZSTD: &str = "28b52ffd6460017d010064024d4553534147453d61206c696e65206f662061206c6f6720746\
        86174207265706561 74732c200100be112af5046cd5010f";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn packed() -> [(Compression, Vec<u8>); 3] {
        let lz4 = [&608_u64.to_le_bytes()[..], &bytes(LZ4)].concat();
        [
            (Compression::Xz, bytes(XZ)),
            (Compression::Lz4, lz4),
            (Compression::Zstd, bytes(ZSTD)),
        ]
    }

    #[test]
    fn each_kind_is_unpacked() {
        let whole = format!("MESSAGE={}", "a line of a log that repeats, ".repeat(20));
        for (kind, packed) in packed() {
            let found = kind
                .unpack(&packed)
                .map(|found| String::from_utf8(found).unwrap());
            assert_eq!(found.as_ref(), Some(&whole), "{kind:?}");
        }
    }

    #[test]
    fn damage_ends_in_nothing_or_in_less() {
        for (kind, packed) in packed() {
            for at in 0..packed.len() {
                let mut damaged = packed.clone();
                damaged[at] ^= 0x41;
                let found = kind.unpack(&damaged).unwrap_or_default();
                assert!(found.len() <= LIMIT);
                kind.unpack(&packed[..at]);
            }
        }
    }
}
