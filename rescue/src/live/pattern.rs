//! Shell patterns as modules.alias uses them: `*`, `?` and `[a-z]`; `-` and `_` are the same, as
//! for modprobe.

/// Whether `text` matches the whole of `pattern`.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when a guess about the last `*` was wrong: just after the star, and one byte
    // further in the text.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                retry = Some((p, t));
                continue;
            }
            None if t == text.len() => return true,
            Some(_) if t < text.len() => {
                if let Some(after) = match_one(&pattern[p..], text[t]) {
                    p += after;
                    t += 1;
                    continue;
                }
            }
            _ => {}
        }
        match retry {
            Some((star, from)) if from < text.len() => {
                (p, t) = (star, from + 1);
                retry = Some((star, from + 1));
            }
            _ => return false,
        }
    }
}

/// Matches one byte at the start of the pattern and gives how much of the pattern that took.
fn match_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern.first()? {
        b'?' => Some(1),
        b'[' => {
            let end = pattern.iter().position(|b| *b == b']')?;
            in_set(pattern.get(1..end)?, byte).then_some(end + 1)
        }
        other => (same(*other) == same(byte)).then_some(1),
    }
}

fn in_set(set: &[u8], byte: u8) -> bool {
    let (negated, mut set) = match set.split_first() {
        Some((b'!' | b'^', rest)) => (true, rest),
        _ => (false, set),
    };
    let mut found = false;
    while let Some((&low, rest)) = set.split_first() {
        if let [b'-', high, after @ ..] = rest {
            found |= (low..=*high).contains(&byte);
            set = after;
        } else {
            found |= low == byte;
            set = rest;
        }
    }
    found != negated
}

fn same(byte: u8) -> u8 {
    if byte == b'-' { b'_' } else { byte }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_modprobe_does() {
        let vmw = "pci:v000015ADd000007C0sv000015ADsd000007C0bc01sc07i00";
        for (pattern, text, expected) in [
            ("pci:v000015ADd000007C0sv*sd*bc*sc*i*", vmw, true),
            ("pci:v*d*sv*sd*bc01sc08i02*", vmw, false),
            ("scsi:t-0x00*", "scsi:t-0x00", true),
            ("scsi:t-0x00*", "scsi:t-0x05", false),
            ("crypto-crc32c", "crypto_crc32c", true),
            ("usb:v*p*d01[0-9]*dc*", "usb:v1234p5d0105dc00", true),
            ("usb:v*p*d01[!0-9]*dc*", "usb:v1234p5d0105dc00", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("", "a", false),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
            ("a[b", "ab", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
