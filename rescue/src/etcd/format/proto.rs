//! The little of Protocol Buffers' wire format that etcd's files need: fields are walked in place,
//! nothing is copied.
//!
//! Source of the format: protobuf.dev/programming-guides/encoding. etcd up to 3.6 writes with
//! gogo/protobuf, which also writes fields that are zero where its `.proto` says non-nullable; 3.7
//! leaves them out. A reader must take both.

/// One field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2: bytes, a string, or a message.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
}

impl<'a> Value<'a> {
    /// The number of a varint; other kinds are malformed here.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn number(self) -> Result<u64, Malformed> {
        match self {
            Self::Varint(number) => Ok(number),
            _ => Err(Malformed),
        }
    }

    /// The bytes of a length-delimited field; other kinds are malformed here.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed),
        }
    }

    /// An `int64` as etcd keeps revisions in it: a varint in two's complement.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn signed(self) -> Result<i64, Malformed> {
        self.number().map(u64::cast_signed)
    }
}

/// The bytes are no message of the kind expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a well-formed protobuf message")]
pub struct Malformed;

/// The fields of a message, in order; ends after the first malformed one.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
    failed: bool,
}

/// Walks the fields of `message`.
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields {
        rest: message,
        failed: false,
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u32, Value<'a>)> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3)
            .ok()
            .filter(|number| (1..1 << 29).contains(number))?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((number, value))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for (index, byte) in self.rest.iter().take(10).enumerate() {
            let bits = u64::from(byte & 0x7f);
            // The tenth byte holds one bit.
            if index == 9 && bits > 1 {
                return None;
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                self.rest = self.rest.get(index + 1..)?;
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        self.failed = field.is_none();
        Some(field.ok_or(Malformed))
    }
}

/// Adds the number of a repeated integer field, packed or not.
///
/// # Errors
/// [`Malformed`], also for more than `limit` numbers.
pub fn push_repeated(into: &mut Vec<u64>, value: Value<'_>, limit: usize) -> Result<(), Malformed> {
    match value {
        Value::Varint(number) => into.push(number),
        Value::Bytes(bytes) => {
            let mut packed = fields(bytes);
            while !packed.rest.is_empty() && into.len() <= limit {
                into.push(packed.varint().ok_or(Malformed)?);
            }
        }
        _ => return Err(Malformed),
    }
    if into.len() > limit {
        Err(Malformed)
    } else {
        Ok(())
    }
}

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends an integer field, also when it is 0: gogo/protobuf does.
pub fn put_number(out: &mut Vec<u8>, field: u32, number: u64) {
    put_varint(out, u64::from(field) << 3);
    put_varint(out, number);
}

/// Appends bytes, a string or a message.
pub fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_varint(out, (u64::from(field) << 3) | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let mut message = Vec::new();
        put_number(&mut message, 1, 0);
        put_number(&mut message, 2, u64::MAX);
        put_bytes(&mut message, 1204, b"deep");
        let read: Vec<_> = fields(&message).collect::<Result<_, _>>().unwrap();
        assert_eq!(
            read,
            [
                (1, Value::Varint(0)),
                (2, Value::Varint(u64::MAX)),
                (1204, Value::Bytes(b"deep".as_slice()))
            ]
        );
        assert_eq!(Value::Varint(u64::MAX).signed(), Ok(-1));
    }

    #[test]
    fn repeated_numbers_come_packed_or_not() {
        let mut numbers = Vec::new();
        push_repeated(&mut numbers, Value::Varint(7), 10).unwrap();
        push_repeated(&mut numbers, Value::Bytes(&[1, 0xac, 2]), 10).unwrap();
        assert_eq!(numbers, [7, 1, 300]);
        assert!(push_repeated(&mut numbers, Value::Bytes(&[1; 20]), 10).is_err());
    }

    #[test]
    fn malformed_ends_the_walk() {
        for bytes in [
            &[0x08][..],
            &[0x0a, 5, 1],
            &[0xff; 11],
            &[0x0b],
            &[0x00, 0],
            &[0x09, 1, 2],
        ] {
            let all: Vec<_> = fields(bytes).collect();
            assert_eq!(all, [Err(Malformed)], "{bytes:x?}");
        }
    }

    #[test]
    fn no_input_panics() {
        let mut state = 1u64;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..24)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            assert!(fields(&bytes).count() <= bytes.len());
        }
    }
}
