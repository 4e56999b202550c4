//! PEM as Go reads it: text before and between the blocks, CRLF and blocks with headers are all
//! found in real files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::ops::Range;

/// One PEM block.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    /// What stands after `BEGIN`: `CERTIFICATE`, `RSA PRIVATE KEY` …
    pub label: String,
    /// The decoded bytes. May be a private key.
    pub der: Vec<u8>,
    /// Whether there were headers (`Proc-Type: …`); Go's ParseCertsPEM ignores such certificates.
    pub has_headers: bool,
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({}, {} bytes)", self.label, self.der.len())
    }
}

/// All well-formed blocks in order; everything else in the file is skipped, as Go's `pem.Decode`
/// does.
pub fn blocks(bytes: &[u8]) -> Vec<Block> {
    located(bytes).into_iter().map(|(block, _)| block).collect()
}

/// The same, each with the bytes it takes: from its first dash to the end of its last line.
pub fn located(bytes: &[u8]) -> Vec<(Block, Range<usize>)> {
    let mut found = Vec::new();
    let mut open: Option<(Open, usize)> = None;
    let mut next = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let start = next;
        next += line.len();
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        if let Some(label) = label(line, "-----BEGIN ") {
            open = Some((
                Open {
                    label: label.to_owned(),
                    body: String::new(),
                    has_headers: false,
                },
                start,
            ));
        } else if let Some(label) = label(line, "-----END ") {
            let closed = open.take().filter(|(open, _)| open.label == label);
            found.extend(closed.and_then(|(open, start)| Some((open.close()?, start..next))));
        } else if let Some((open, _)) = &mut open {
            open.add(line);
        }
    }
    found
}

/// `bytes` with one certificate exchanged: of the certificates that `is_old` picks the first
/// becomes `new`, further ones go, and all of them go where `new` is there already. Every other
/// byte stays. `None` where none is picked.
pub fn replace_certificate(
    bytes: &[u8],
    is_old: impl Fn(&[u8]) -> bool,
    new: &[u8],
) -> Option<Vec<u8>> {
    let all = located(bytes);
    let certificates = || {
        all.iter()
            .filter(|(block, _)| block.label == "CERTIFICATE" && !block.has_headers)
    };
    let mut is_there = certificates().any(|(block, _)| block.der == new);
    let (mut text, mut done) = (Vec::with_capacity(bytes.len()), 0);
    for (_, range) in certificates().filter(|(block, _)| block.der != new && is_old(&block.der)) {
        text.extend_from_slice(bytes.get(done..range.start)?);
        done = range.end;
        if !is_there {
            let has_crlf = bytes
                .get(range.clone())?
                .windows(2)
                .any(|pair| pair == b"\r\n");
            let block = encode("CERTIFICATE", new);
            text.extend(
                if has_crlf {
                    block.replace('\n', "\r\n")
                } else {
                    block
                }
                .into_bytes(),
            );
            is_there = true;
        }
    }
    if done == 0 {
        return None;
    }
    text.extend_from_slice(bytes.get(done..)?);
    Some(text)
}

/// The DER of every `CERTIFICATE` block without headers, in order.
pub fn certificates(bytes: &[u8]) -> Vec<Vec<u8>> {
    blocks(bytes)
        .into_iter()
        .filter(|block| block.label == "CERTIFICATE" && !block.has_headers)
        .map(|block| block.der)
        .collect()
}

const MARKED: &str = "it begins with a byte order mark, as Windows' editors write it, which \
    Kubernetes does not skip";
const UTF16: &str = "it is UTF-16, as PowerShell writes it, which Kubernetes does not read";
const INDENTED: &str =
    "its lines are indented, and Kubernetes looks for the dashes at the beginning of a line";

/// The line that takes away the [`oddity`] that `why` speaks of, on the node or where its disk is
/// mounted.
pub fn cure(why: &str, path: impl std::fmt::Display) -> Option<String> {
    let lines = [
        (MARKED, format!("sed -i '1s/^\\xEF\\xBB\\xBF//' {path}")),
        (
            UTF16,
            format!("iconv -f UTF-16 -t UTF-8 {path} > {path}.utf8 && cat {path}.utf8 > {path}"),
        ),
        (INDENTED, format!("sed -i 's/^[ \\t]*//' {path}")),
    ];
    lines
        .into_iter()
        .find(|(oddity, _)| why.contains(oddity))
        .map(|(_, line)| line)
}

/// What keeps Kubernetes from seeing PEM that a person sees: Go's `pem.Decode` wants its dashes at
/// the beginning of a line, in bytes. `None` where that is not it.
pub fn oddity(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xef, 0xbb, 0xbf, ..] => Some(MARKED),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(UTF16),
        _ => {
            let is_indented = |line: &&[u8]| line.starts_with(b" ") || line.starts_with(b"\t");
            let mut lines = bytes.split(|byte| *byte == b'\n').filter(is_indented);
            lines
                .any(|line| line.trim_ascii_start().starts_with(b"-----BEGIN "))
                .then_some(INDENTED)
        }
    }
}

/// The text without its [`oddity`]: as a witness of what a file said, where Kubernetes cannot read
/// it.
pub fn without_oddity(bytes: &[u8]) -> Option<Vec<u8>> {
    oddity(bytes)?;
    let units = |from: fn([u8; 2]) -> u16| {
        let pairs = bytes.get(2..).unwrap_or_default().chunks_exact(2);
        let units: Vec<u16> = pairs
            .filter_map(|pair| Some(from([*pair.first()?, *pair.get(1)?])))
            .collect();
        String::from_utf16_lossy(&units).into_bytes()
    };
    Some(match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => rest.to_vec(),
        [0xff, 0xfe, ..] => units(u16::from_le_bytes),
        [0xfe, 0xff, ..] => units(u16::from_be_bytes),
        _ => bytes
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii_start)
            .collect::<Vec<_>>()
            .join(&b'\n'),
    })
}

/// One block with 64 columns, line feeds, and a final one: byte for byte what Go's `pem.Encode`
/// writes.
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

struct Open {
    label: String,
    body: String,
    has_headers: bool,
}

impl Open {
    fn add(&mut self, line: &str) {
        if line.contains(':') {
            self.has_headers = true;
        } else {
            self.body.extend(
                line.chars()
                    .filter(|character| !character.is_ascii_whitespace()),
            );
        }
    }

    fn close(self) -> Option<Block> {
        // An encrypted key's headers continue on further lines only in formats that nobody writes;
        // base64 that does not decode makes the block garbage, and garbage is skipped.
        let der = STANDARD.decode(self.body.as_bytes()).ok()?;
        Some(Block {
            label: self.label,
            der,
            has_headers: self.has_headers,
        })
    }
}

fn label<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    line.strip_prefix(marker)?.strip_suffix("-----")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_blocks_between_text_with_crlf() {
        let body = encode("CERTIFICATE", b"one").replace('\n', "\r\n");
        let text = format!(
            "Certificate:\r\n    Data:\r\n{body}junk\r\n{}",
            encode("EC PARAMETERS", b"two")
        );
        let found = blocks(text.as_bytes());
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].label.as_str(), found[0].der.as_slice()),
            ("CERTIFICATE", b"one".as_slice())
        );
        assert_eq!(found[1].label, "EC PARAMETERS");
        assert_eq!(certificates(text.as_bytes()), vec![b"one".to_vec()]);
    }

    #[test]
    fn ignores_certificates_with_headers_and_garbage() {
        let with_header = encode("CERTIFICATE", b"one")
            .replace("CERTIFICATE-----\nb", "CERTIFICATE-----\nA: b\n\nb");
        assert!(blocks(with_header.as_bytes())[0].has_headers);
        assert!(certificates(with_header.as_bytes()).is_empty());
        let garbage = "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n\
            -----BEGIN X-----\n-----END Y-----\n";
        assert!(blocks(garbage.as_bytes()).is_empty());
    }

    #[test]
    fn exchanges_one_certificate_of_a_bundle() {
        let (one, two, new) = (
            encode("CERTIFICATE", b"one"),
            encode("CERTIFICATE", b"two"),
            encode("CERTIFICATE", b"new"),
        );
        let key = encode("EC PRIVATE KEY", b"one");
        let exchange = |text: &str| {
            let bytes =
                replace_certificate(text.as_bytes(), |der| der == b"one" || der == b"1", b"new")?;
            Some(String::from_utf8(bytes).unwrap())
        };
        assert_eq!(
            exchange(&format!("a\n{two}b\n{one}c\n{key}d")).unwrap(),
            format!("a\n{two}b\n{new}c\n{key}d")
        );
        let crlf = |text: &str| text.replace('\n', "\r\n");
        assert_eq!(
            exchange(&crlf(&format!("{one}{two}"))).unwrap(),
            crlf(&format!("{new}{two}"))
        );
        // Two ages of one CA become one, and one that is there already is not doubled.
        let older = encode("CERTIFICATE", b"1");
        assert_eq!(
            exchange(&format!("{one}{two}{older}")).unwrap(),
            format!("{new}{two}")
        );
        assert_eq!(exchange(&format!("{one}{new}")).unwrap(), new);
        assert!(exchange(&format!("{two}{key}{new}")).is_none());
        let mut binary = vec![0xff, 0xfe, b'\n'];
        binary.extend_from_slice(one.as_bytes());
        let after = replace_certificate(&binary, |der| der == b"one", b"new").unwrap();
        assert_eq!(
            (after.get(..3), after.get(3..)),
            (binary.get(..3), Some(new.as_bytes()))
        );
    }

    #[test]
    fn sees_what_kubernetes_does_not() {
        let text = encode("CERTIFICATE", b"one");
        let utf16 = |from: fn(u16) -> [u8; 2], mark: &[u8]| {
            mark.iter()
                .copied()
                .chain(text.encode_utf16().flat_map(from))
                .collect::<Vec<u8>>()
        };
        let odd = [
            [&[0xef, 0xbb, 0xbf], text.as_bytes()].concat(),
            utf16(u16::to_le_bytes, &[0xff, 0xfe]),
            utf16(u16::to_be_bytes, &[0xfe, 0xff]),
            text.lines()
                .map(|line| format!("  {line}\n"))
                .collect::<String>()
                .into_bytes(),
        ];
        for bytes in odd {
            assert!(certificates(&bytes).is_empty() && oddity(&bytes).is_some());
            assert_eq!(certificates(&without_oddity(&bytes).unwrap()), [b"one"]);
        }
        assert_eq!(oddity(text.as_bytes()), None);
        for short in [&b""[..], &[0xef], &[0xff, 0xfe], &[0xff, 0xfe, 0x2d]] {
            assert!(without_oddity(short).is_none_or(|bytes| certificates(&bytes).is_empty()));
        }
    }

    #[test]
    fn writes_64_columns() {
        let text = encode("CERTIFICATE", &[7; 100]);
        assert!(text.lines().all(|line| line.len() <= 64));
        assert!(text.ends_with("-----END CERTIFICATE-----\n"));
        assert_eq!(certificates(text.as_bytes()), vec![vec![7; 100]]);
    }
}
