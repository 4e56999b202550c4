//! PEM as Go reads it: text before and between the blocks, CRLF and blocks with headers are all found in real files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

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

/// All well-formed blocks in order; everything else in the file is skipped, as Go's `pem.Decode` does.
pub fn blocks(bytes: &[u8]) -> Vec<Block> {
    let text = String::from_utf8_lossy(bytes);
    let mut found = Vec::new();
    let mut open: Option<Open> = None;
    for line in text.lines() {
        let line = line.trim_end();
        if let Some(label) = label(line, "-----BEGIN ") {
            open = Some(Open { label: label.to_owned(), body: String::new(), has_headers: false });
        } else if let Some(label) = label(line, "-----END ") {
            found.extend(open.take().filter(|open| open.label == label).and_then(Open::close));
        } else if let Some(open) = &mut open {
            open.add(line);
        }
    }
    found
}

/// The DER of every `CERTIFICATE` block without headers, in order.
pub fn certificates(bytes: &[u8]) -> Vec<Vec<u8>> {
    blocks(bytes)
        .into_iter()
        .filter(|block| block.label == "CERTIFICATE" && !block.has_headers)
        .map(|block| block.der)
        .collect()
}

/// One block with 64 columns, line feeds, and a final one: byte for byte what Go's `pem.Encode` writes.
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
            self.body.extend(line.chars().filter(|character| !character.is_ascii_whitespace()));
        }
    }

    fn close(self) -> Option<Block> {
        // An encrypted key's headers continue on further lines only in formats that nobody writes; base64 that does not
        // decode makes the block garbage, and garbage is skipped.
        let der = STANDARD.decode(self.body.as_bytes()).ok()?;
        Some(Block { label: self.label, der, has_headers: self.has_headers })
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
        let text = format!("Certificate:\r\n    Data:\r\n{body}junk\r\n{}", encode("EC PARAMETERS", b"two"));
        let found = blocks(text.as_bytes());
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].label.as_str(), found[0].der.as_slice()), ("CERTIFICATE", b"one".as_slice()));
        assert_eq!(found[1].label, "EC PARAMETERS");
        assert_eq!(certificates(text.as_bytes()), vec![b"one".to_vec()]);
    }

    #[test]
    fn ignores_certificates_with_headers_and_garbage() {
        let with_header = encode("CERTIFICATE", b"one").replace("CERTIFICATE-----\nb", "CERTIFICATE-----\nA: b\n\nb");
        assert!(blocks(with_header.as_bytes())[0].has_headers);
        assert!(certificates(with_header.as_bytes()).is_empty());
        let garbage =
            "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n-----BEGIN X-----\n-----END Y-----\n";
        assert!(blocks(garbage.as_bytes()).is_empty());
    }

    #[test]
    fn writes_64_columns() {
        let text = encode("CERTIFICATE", &[7; 100]);
        assert!(text.lines().all(|line| line.len() <= 64));
        assert!(text.ends_with("-----END CERTIFICATE-----\n"));
        assert_eq!(certificates(text.as_bytes()), vec![vec![7; 100]]);
    }
}
