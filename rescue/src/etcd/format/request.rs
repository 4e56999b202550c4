//! What a normal entry of the log asks for: etcd's InternalRaftRequest, as far as it changes keys,
//! leases, alarms or members. Field numbers from api/etcdserverpb (raft_internal.proto, rpc.proto,
//! etcdserver.proto).

use super::proto::{Malformed, Value, fields};

/// Deeper transactions than any client sends; etcd's own limit on operations is 128.
const MAX_NESTING: usize = 16;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// What changes nothing: a new leader's first entry, a question.
    Nothing,
    /// A key is written.
    Put(Put<'a>),
    /// Keys are deleted.
    Delete(Range<'a>),
    /// Several operations under conditions.
    Txn(Txn<'a>),
    /// History up to a revision goes.
    Compact(i64),
    /// A lease begins.
    LeaseGrant(i64),
    /// A lease ends, and the keys that hang on it go.
    LeaseRevoke(i64),
    /// An alarm is raised or lifted.
    Alarm(Alarm),
    /// A member says its name and where clients reach it, as JSON.
    MemberAttributes {
        /// The member.
        id: u64,
        /// `{"name":…,"clientURLs":[…]}`.
        json: &'a [u8],
    },
    /// The same in the form of 3.6.
    MemberAttributesSet {
        /// The member.
        id: u64,
        /// Its name.
        name: String,
        /// Where clients reach it.
        client_urls: Vec<String>,
    },
    /// The cluster's version changes.
    ClusterVersion(String),
    /// Anything that changes none of these: ranges, authentication, v2 keys.
    Other,
}

/// PutRequest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Put<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// The lease it hangs on; 0 for none.
    pub lease: i64,
    /// The value stays as it is.
    pub ignore_value: bool,
    /// The lease stays as it is.
    pub ignore_lease: bool,
}

/// A key, or a range of keys: from `key` to before `end`; `end` of one zero byte means without end,
/// empty only the one key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range<'a> {
    /// First key.
    pub key: &'a [u8],
    /// First key that does not belong.
    pub end: &'a [u8],
}

impl Range<'_> {
    /// Whether `key` lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self.end {
            [] => key == self.key,
            [0] => key >= self.key,
            end => key >= self.key && key < end,
        }
    }
}

/// TxnRequest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn<'a> {
    /// All must hold.
    pub compare: Vec<Compare<'a>>,
    /// Done when they do.
    pub success: Vec<Operation<'a>>,
    /// Done when they do not.
    pub failure: Vec<Operation<'a>>,
}

/// RequestOp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Changes nothing.
    Range {
        /// Of which revision the keys are wanted; 0 for the newest.
        revision: i64,
    },
    /// A key is written.
    Put(Put<'a>),
    /// Keys are deleted.
    Delete(Range<'a>),
    /// A transaction within.
    Txn(Txn<'a>),
}

/// What a condition looks at, with what it is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// How often the key was written since it was created.
    Version(i64),
    /// The revision of its creation.
    Create(i64),
    /// The revision of its last change.
    Mod(i64),
    /// Its value.
    Value(&'a [u8]),
    /// Its lease.
    Lease(i64),
}

/// Compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compare<'a> {
    /// Which keys.
    pub range: Range<'a>,
    /// What of them.
    pub target: Target<'a>,
    /// How.
    pub result: Comparison,
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `=`.
    Equal,
    /// `>`.
    Greater,
    /// `<`.
    Less,
    /// `!=`.
    NotEqual,
}

/// AlarmRequest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alarm {
    /// Raised (true) or lifted; asking for alarms is [`Request::Nothing`].
    pub raise: bool,
    /// Whose.
    pub member: u64,
    /// Which: 1 no space, 2 corrupt.
    pub kind: u64,
}

impl<'a> Request<'a> {
    /// Reads an entry's data.
    ///
    /// # Errors
    /// [`Malformed`] where it is of neither form; etcd panics then.
    pub fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        if data.is_empty() {
            return Ok(Self::Nothing);
        }
        // Entries of the v2 store before it was wrapped: method, path and value. etcd tries in the
        // same order.
        internal(data).or_else(|_| v2(data))
    }
}

fn internal(data: &[u8]) -> Result<Request<'_>, Malformed> {
    let mut request = Request::Other;
    for field in fields(data) {
        let (number, value) = field?;
        request = match number {
            2 => v2(value.bytes()?)?,
            4 => Request::Put(put(value.bytes()?)?),
            5 => Request::Delete(range(value.bytes()?, 1, 2)?),
            6 => Request::Txn(txn(value.bytes()?, 0)?),
            7 => Request::Compact(number_of(value.bytes()?, 1)?.cast_signed()),
            8 => Request::LeaseGrant(number_of(value.bytes()?, 2)?.cast_signed()),
            9 => Request::LeaseRevoke(number_of(value.bytes()?, 1)?.cast_signed()),
            10 => alarm(value.bytes()?)?,
            1300 => Request::ClusterVersion(text_of(value.bytes()?, 1)?),
            1301 => member_attributes(value.bytes()?)?,
            // The header and the ID come beside a request.
            1 | 100 => continue,
            _ => Request::Other,
        };
    }
    Ok(request)
}

/// etcdserverpb.Request: method, path, value.
fn v2(data: &[u8]) -> Result<Request<'_>, Malformed> {
    let (mut method, mut path, mut json) = (&b""[..], &b""[..], &b""[..]);
    for field in fields(data) {
        match field? {
            (2, value) => method = value.bytes()?,
            (3, value) => path = value.bytes()?,
            (4, value) => json = value.bytes()?,
            _ => {}
        }
    }
    if method.is_empty() {
        return Err(Malformed);
    }
    if method != b"PUT" {
        return Ok(Request::Other);
    }
    let path = std::str::from_utf8(path).map_err(|_| Malformed)?;
    if path == "/0/version" {
        return Ok(Request::ClusterVersion(
            String::from_utf8_lossy(json).into_owned(),
        ));
    }
    let id = path
        .strip_prefix("/0/members/")
        .and_then(|rest| rest.strip_suffix("/attributes"));
    Ok(match id.and_then(|id| u64::from_str_radix(id, 16).ok()) {
        Some(id) => Request::MemberAttributes { id, json },
        None => Request::Other,
    })
}

fn number_of(message: &[u8], wanted: u32) -> Result<u64, Malformed> {
    let mut found = 0;
    for field in fields(message) {
        let (number, value) = field?;
        if number == wanted {
            found = value.number()?;
        }
    }
    Ok(found)
}

fn text_of(message: &[u8], wanted: u32) -> Result<String, Malformed> {
    let mut found = String::new();
    for field in fields(message) {
        let (number, value) = field?;
        if number == wanted {
            found = String::from_utf8_lossy(value.bytes()?).into_owned();
        }
    }
    Ok(found)
}

fn put(message: &[u8]) -> Result<Put<'_>, Malformed> {
    let mut put = Put::default();
    for field in fields(message) {
        match field? {
            (1, value) => put.key = value.bytes()?,
            (2, value) => put.value = value.bytes()?,
            (3, value) => put.lease = value.signed()?,
            (5, value) => put.ignore_value = value.number()? != 0,
            (6, value) => put.ignore_lease = value.number()? != 0,
            _ => {}
        }
    }
    Ok(put)
}

fn range(message: &[u8], key: u32, end: u32) -> Result<Range<'_>, Malformed> {
    let mut range = Range::default();
    for field in fields(message) {
        let (number, value) = field?;
        if number == key {
            range.key = value.bytes()?;
        } else if number == end {
            range.end = value.bytes()?;
        }
    }
    Ok(range)
}

fn txn(message: &[u8], depth: usize) -> Result<Txn<'_>, Malformed> {
    if depth > MAX_NESTING {
        return Err(Malformed);
    }
    let mut txn = Txn::default();
    for field in fields(message) {
        match field? {
            (1, value) => txn.compare.push(compare(value.bytes()?)?),
            (2, value) => txn.success.push(operation(value.bytes()?, depth)?),
            (3, value) => txn.failure.push(operation(value.bytes()?, depth)?),
            _ => {}
        }
    }
    Ok(txn)
}

/// RangeRequest {4: revision}.
fn range_revision(message: &[u8]) -> Result<i64, Malformed> {
    let mut revision = 0;
    for field in fields(message) {
        if let (4, value) = field? {
            revision = value.signed()?;
        }
    }
    Ok(revision)
}

fn operation(message: &[u8], depth: usize) -> Result<Operation<'_>, Malformed> {
    let mut operation = Operation::Range { revision: 0 };
    for field in fields(message) {
        operation = match field? {
            (2, value) => Operation::Put(put(value.bytes()?)?),
            (3, value) => Operation::Delete(range(value.bytes()?, 1, 2)?),
            (4, value) => Operation::Txn(txn(value.bytes()?, depth + 1)?),
            (1, value) => Operation::Range {
                revision: range_revision(value.bytes()?)?,
            },
            _ => Operation::Range { revision: 0 },
        };
    }
    Ok(operation)
}

fn compare(message: &[u8]) -> Result<Compare<'_>, Malformed> {
    let (mut result, mut target) = (Comparison::Equal, 0);
    let (mut number, mut bytes) = (0, &b""[..]);
    for field in fields(message) {
        match field? {
            (1, value) => {
                result = match value.number()? {
                    0 => Comparison::Equal,
                    1 => Comparison::Greater,
                    2 => Comparison::Less,
                    3 => Comparison::NotEqual,
                    _ => return Err(Malformed),
                }
            }
            (2, value) => target = value.number()?,
            (4 | 5 | 6 | 8, value) => number = value.signed()?,
            (7, value) => bytes = value.bytes()?,
            _ => {}
        }
    }
    let target = match target {
        0 => Target::Version(number),
        1 => Target::Create(number),
        2 => Target::Mod(number),
        3 => Target::Value(bytes),
        4 => Target::Lease(number),
        _ => return Err(Malformed),
    };
    Ok(Compare {
        range: range(message, 3, 64)?,
        target,
        result,
    })
}

fn alarm(message: &[u8]) -> Result<Request<'_>, Malformed> {
    let raise = match number_of(message, 1)? {
        1 => true,
        2 => false,
        // `etcdctl alarm list`: it goes through the log as the others do.
        0 => return Ok(Request::Nothing),
        _ => return Ok(Request::Other),
    };
    Ok(Request::Alarm(Alarm {
        raise,
        member: number_of(message, 2)?,
        kind: number_of(message, 3)?,
    }))
}

fn member_attributes(message: &[u8]) -> Result<Request<'_>, Malformed> {
    let (mut id, mut name, mut client_urls) = (0, String::new(), Vec::new());
    for field in fields(message) {
        match field? {
            (1, value) => id = value.number()?,
            (2, value) => {
                for attribute in fields(value.bytes()?) {
                    match attribute? {
                        (1, Value::Bytes(text)) => {
                            name = String::from_utf8_lossy(text).into_owned()
                        }
                        (2, Value::Bytes(url)) => {
                            client_urls.push(String::from_utf8_lossy(url).into_owned())
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Request::MemberAttributesSet {
        id,
        name,
        client_urls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::format::proto::{put_bytes, put_number};

    fn wrapped(field: u32, message: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        put_number(&mut data, 1, 99);
        put_bytes(&mut data, field, message);
        data
    }

    #[test]
    fn reads_puts_and_transactions() {
        let mut put = Vec::new();
        put_bytes(&mut put, 1, b"/registry/a");
        put_bytes(&mut put, 2, b"v");
        put_number(&mut put, 3, 77);
        let data = wrapped(4, &put);
        let Ok(Request::Put(read)) = Request::parse(&data) else {
            panic!()
        };
        assert_eq!(
            (read.key, read.value, read.lease),
            (&b"/registry/a"[..], &b"v"[..], 77)
        );

        let mut compare = Vec::new();
        put_number(&mut compare, 2, 2);
        put_bytes(&mut compare, 3, b"/registry/a");
        put_number(&mut compare, 6, 12);
        let mut operation = Vec::new();
        put_bytes(&mut operation, 2, &put);
        let mut txn = Vec::new();
        put_bytes(&mut txn, 1, &compare);
        put_bytes(&mut txn, 2, &operation);
        let data = wrapped(6, &txn);
        let Ok(Request::Txn(txn)) = Request::parse(&data) else {
            panic!()
        };
        assert_eq!(txn.compare[0].target, Target::Mod(12));
        assert!(matches!(txn.success[0], Operation::Put(put) if put.lease == 77));
    }

    #[test]
    fn reads_members_of_both_forms() {
        let mut v2 = Vec::new();
        put_number(&mut v2, 1, 5);
        put_bytes(&mut v2, 2, b"PUT");
        put_bytes(&mut v2, 3, b"/0/members/8e9e05c52164694d/attributes");
        put_bytes(&mut v2, 4, b"{}");
        let data = wrapped(2, &v2);
        for data in [&v2, &data] {
            let Ok(Request::MemberAttributes { id, json: b"{}" }) = Request::parse(data) else {
                panic!()
            };
            assert_eq!(id, 0x8e9e_05c5_2164_694d);
        }
        assert_eq!(Request::parse(b""), Ok(Request::Nothing));
        assert!(Request::parse(b"\xff\xff").is_err());
    }

    #[test]
    fn ranges_are_etcd_s() {
        let range = |key, end| Range { key, end };
        assert!(range(b"a", b"").contains(b"a") && !range(b"a", b"").contains(b"b"));
        assert!(range(b"a", b"c").contains(b"bz") && !range(b"a", b"c").contains(b"c"));
        assert!(range(b"b", b"\0").contains(b"zzz") && !range(b"b", b"\0").contains(b"a"));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut message = Vec::new();
        for _ in 0..100 {
            let mut operation = Vec::new();
            put_bytes(&mut operation, 4, &message);
            let mut txn = Vec::new();
            put_bytes(&mut txn, 2, &operation);
            message = txn;
        }
        assert!(Request::parse(&wrapped(6, &message)).is_err());
    }
}
