//! Keys and values of etcd on a terminal: text as it is, protobuf field by field (as `protoc
//! --decode_raw` shows it), nothing that a terminal would take for a command.

use std::fmt::Write as _;

use crate::etcd::format::proto::{self, Value};

/// Deeper messages are shown as bytes.
const MAX_DEPTH: usize = 24;
/// Longer bytes are cut.
const MAX_BYTES: usize = 64;

/// A value; ends with a line feed.
pub fn value(bytes: &[u8]) -> String {
    if let Some(text) = text(bytes) {
        return if text.ends_with('\n') {
            text.to_owned()
        } else {
            format!("{text}\n")
        };
    }
    let mut out = String::new();
    let message = match bytes.strip_prefix(b"k8s\0") {
        Some(message) => {
            out.push_str("# Kubernetes object in protobuf, field numbers instead of names\n");
            message
        }
        None => bytes,
    };
    if is_message(message, 0) {
        fields(&mut out, message, 0);
    } else {
        let _ = writeln!(
            out,
            "# {} that are neither text nor protobuf; --raw writes them as they are",
            crate::base::units::bytes(bytes.len() as u64)
        );
    }
    out
}

/// Text that a terminal shows as it is.
fn text(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    text.chars()
        .all(|character| {
            !crate::base::escaping::misleads(character) || matches!(character, '\n' | '\t')
        })
        .then_some(text)
}

fn is_message(bytes: &[u8], depth: usize) -> bool {
    !bytes.is_empty() && depth < MAX_DEPTH && proto::fields(bytes).all(|field| field.is_ok())
}

fn fields(out: &mut String, message: &[u8], depth: usize) {
    let indent = "  ".repeat(depth);
    for field in proto::fields(message).map_while(Result::ok) {
        let _ = match field {
            (number, Value::Varint(value)) => writeln!(out, "{indent}{number}: {value}"),
            (number, Value::Fixed64(value)) => writeln!(out, "{indent}{number}: 0x{value:016x}"),
            (number, Value::Fixed32(value)) => writeln!(out, "{indent}{number}: 0x{value:08x}"),
            (number, Value::Bytes(bytes)) => match text(bytes) {
                Some(text) if text.contains('\n') => {
                    let _ = writeln!(out, "{indent}{number}: |");
                    text.lines()
                        .try_for_each(|line| writeln!(out, "{indent}  {line}"))
                }
                Some(text) => writeln!(out, "{indent}{number}: {text:?}"),
                None if is_message(bytes, depth + 1) => {
                    let _ = writeln!(out, "{indent}{number}:");
                    fields(out, bytes, depth + 1);
                    Ok(())
                }
                None => writeln!(out, "{indent}{number}: {}", hex(bytes)),
            },
        };
    }
}

fn hex(bytes: &[u8]) -> String {
    let shown: String = bytes
        .iter()
        .take(MAX_BYTES)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let more = if bytes.len() > MAX_BYTES {
        format!("… ({} bytes)", bytes.len())
    } else {
        String::new()
    };
    format!("0x{shown}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_a_terminal_raw() {
        assert_eq!(value(b"plain"), "plain\n");
        assert!(!value(b"\x1b[2J").contains('\x1b'));
        let message = b"k8s\0\x0a\x0c\x0a\x02v1\x12\x06Secret\x12\x03\x08\x96\x01";
        let shown = value(message);
        assert!(
            shown.contains("1: \"v1\"") && shown.contains("1: 150"),
            "{shown}"
        );
    }
}
