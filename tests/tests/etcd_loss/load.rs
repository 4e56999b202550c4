//! Writers that keep what etcd acknowledged: what was answered with a revision must never be lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::witness::Witness;

/// Written after each repair, and in no book.
pub const PROBE: &str = "probe";

/// What a key must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its value; `None` after a deletion.
    pub value: Option<String>,
    /// Revision of the write.
    pub revision: i64,
}

/// Everything that was acknowledged, and what was asked without an answer: that may have happened
/// or not.
#[derive(Debug, Default, Clone)]
pub struct Book {
    pub acknowledged: BTreeMap<String, Held>,
    /// All of a key: one may have come late, after another was acknowledged.
    pub unanswered: BTreeMap<String, Vec<Option<String>>>,
}

impl Book {
    /// Adds what was written later.
    pub fn add(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        for (key, values) in other.unanswered {
            self.unanswered.entry(key).or_default().extend(values);
        }
    }

    /// Acknowledged writes that `now` has not.
    fn missing<'a>(
        &'a self,
        now: &'a BTreeMap<String, Held>,
    ) -> impl Iterator<Item = (&'a String, &'a Held)> {
        self.acknowledged.iter().filter(|(key, held)| {
            let found = now.get(*key);
            let as_acknowledged = match held.value {
                Some(_) => found == Some(held),
                None => found.is_none(),
            };
            // A later request without an answer may have taken its place.
            let now = found.and_then(|now| now.value.clone());
            let replaced = self
                .unanswered
                .get(*key)
                .is_some_and(|values| values.contains(&now));
            !as_acknowledged && !replaced
        })
    }

    /// The same, each as a line.
    pub fn lost(&self, now: &BTreeMap<String, Held>) -> Vec<String> {
        let line = |(key, held): (&String, &Held)| {
            format!(
                "{key} of revision {}: {:?}",
                held.revision,
                now.get(key).map(|now| now.revision)
            )
        };
        self.missing(now).map(line).collect()
    }

    /// The first of them that a log held when the disks were given.
    pub fn squandered(&self, now: &BTreeMap<String, Held>, witness: &Witness) -> Option<String> {
        let mut missing = self
            .missing(now)
            .filter(|(key, held)| witness.has(key, held.value.as_deref()));
        missing
            .next()
            .map(|(key, held)| format!("{key} of revision {}", held.revision))
    }

    /// What a repair that lost something, as it announced, left: the book of the next round.
    pub fn restart_from(&mut self, mut now: BTreeMap<String, Held>) {
        now.remove(PROBE);
        *self = Self {
            acknowledged: now,
            unanswered: BTreeMap::new(),
        };
    }
}

/// How long an answer may take, on a busy machine too: a write …
const A_WRITE: Duration = Duration::from_secs(5);
/// … and a page of keys, some of which are large.
const A_PAGE: Duration = Duration::from_secs(60);

/// One member's JSON gateway.
#[derive(Debug)]
pub struct Client {
    agent: ureq::Agent,
    url: String,
}

impl Client {
    pub fn new(url: &str) -> Self {
        Self {
            agent: ureq::Agent::new_with_defaults(),
            url: url.to_owned(),
        }
    }

    fn post(&self, path: &str, body: &Value, patience: Duration) -> Result<Value> {
        let ask = self
            .agent
            .post(format!("{}/v3/{path}", self.url))
            .config()
            .timeout_global(Some(patience))
            .build();
        let answer = ask
            .send(body.to_string())
            .with_context(|| format!("asking {}/v3/{path}", self.url))?;
        Ok(serde_json::from_str(
            &answer
                .into_body()
                .with_config()
                .limit(256 << 20)
                .read_to_string()?,
        )?)
    }

    fn revision(answer: &Value) -> Result<i64> {
        answer["header"]["revision"]
            .as_str()
            .context("no revision in the answer")?
            .parse()
            .context("a revision")
    }

    pub fn put(&self, key: &str, value: &str) -> Result<i64> {
        Self::revision(&self.post(
            "kv/put",
            &json!({"key": STANDARD.encode(key), "value": STANDARD.encode(value)}),
            A_WRITE,
        )?)
    }

    pub fn delete(&self, key: &str) -> Result<i64> {
        Self::revision(&self.post(
            "kv/deleterange",
            &json!({"key": STANDARD.encode(key)}),
            A_WRITE,
        )?)
    }

    pub fn compact(&self, revision: i64) -> Result<()> {
        self.post(
            "kv/compaction",
            &json!({"revision": revision.to_string()}),
            A_WRITE,
        )
        .map(|_| ())
    }

    /// Every key, and the revision of the whole; a read that a majority agrees to.
    pub fn all(&self) -> Result<(BTreeMap<String, Held>, i64)> {
        let (mut from, mut all) = ("\0".to_owned(), BTreeMap::new());
        let mut revision = 0;
        loop {
            let mut ask = json!({
                "key": STANDARD.encode(&from), "range_end": STANDARD.encode("\0"), "limit": "1000"
            });
            if revision != 0 {
                ask["revision"] = json!(i64::to_string(&revision));
            }
            let answer = self.post("kv/range", &ask, A_PAGE)?;
            if revision == 0 {
                revision = Self::revision(&answer)?;
            }
            all.extend(listed(&answer)?);
            if answer["more"].as_bool() != Some(true) {
                return Ok((all, revision));
            }
            let (last, _) = all.last_key_value().context("more keys after none")?;
            from = format!("{last}\0");
        }
    }
}

/// The keys of an answer to a range request, from the gateway or from `etcdctl -w json`.
pub fn listed(answer: &Value) -> Result<BTreeMap<String, Held>> {
    let text = |value: &Value| -> Result<String> {
        Ok(String::from_utf8(
            STANDARD.decode(value.as_str().unwrap_or_default())?,
        )?)
    };
    let number = |value: &Value| {
        value
            .as_i64()
            .or_else(|| value.as_str()?.parse().ok())
            .context("a revision")
    };
    let held = |kv: &Value| {
        Ok((
            text(&kv["key"])?,
            Held {
                value: Some(text(&kv["value"])?),
                revision: number(&kv["mod_revision"])?,
            },
        ))
    };
    answer["kvs"]
        .as_array()
        .into_iter()
        .flatten()
        .map(held)
        .collect()
}

/// How a round's load looks.
#[derive(Debug, Clone)]
pub struct Load {
    /// Begins all keys of the round.
    pub prefix: String,
    /// Bytes of some values: with large ones the log gets more than one file.
    pub large: usize,
    pub seed: u64,
}

const WRITERS: usize = 3;

/// Writes through all members until `during` has returned, which kills them.
pub fn run(
    urls: &[String],
    load: &Load,
    during: impl FnOnce(&AtomicUsize) -> Result<()>,
) -> Result<Book> {
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let client = Client::new(&urls[number % urls.len()]);
                let (stop, count) = (&stop, &count);
                scope.spawn(move || write(&client, load, number, stop, count))
            })
            .collect();
        let result = during(&count);
        stop.store(true, Ordering::SeqCst);
        let mut book = Book::default();
        for writer in writers {
            book.add(
                writer
                    .join()
                    .map_err(|_| anyhow::anyhow!("a writer panicked"))?,
            );
        }
        result?;
        ensure!(!book.acknowledged.is_empty(), "nothing was acknowledged");
        Ok(book)
    })
}

fn write(
    client: &Client,
    load: &Load,
    writer: usize,
    stop: &AtomicBool,
    count: &AtomicUsize,
) -> Book {
    let mut random = fastrand::Rng::with_seed(load.seed ^ (writer as u64 + 1));
    let mut book = Book::default();
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("{}w{writer}/{number:06}", load.prefix);
        let (key, value) = match random.u32(0..10) {
            0 if number > 5 => (
                format!("{}w{writer}/{:06}", load.prefix, random.u32(0..number)),
                None,
            ),
            // As a lease of Kubernetes: written again and again.
            1 => (
                format!("{}w{writer}/lease", load.prefix),
                Some(format!("renewed {number}")),
            ),
            2 => (key, Some("v".repeat(load.large))),
            _ => (
                key,
                Some(format!("{number} {}", "x".repeat(random.usize(0..600)))),
            ),
        };
        let answer = match &value {
            Some(value) => client.put(&key, value),
            None => client.delete(&key),
        };
        match answer {
            Ok(revision) => {
                count.fetch_add(1, Ordering::SeqCst);
                book.acknowledged.insert(key, Held { value, revision });
            }
            Err(_) => {
                book.unanswered.entry(key).or_default().push(value);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    book
}
