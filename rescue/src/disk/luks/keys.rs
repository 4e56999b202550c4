//! The keys of this run: what the user gave, how to ask for more, and what opened a volume already. In memory only.
//!
//! One set for the whole process: a repair opens its disks three times, and must not ask three times.

use std::sync::{Mutex, PoisonError};

use zeroize::Zeroizing;

use super::{Key, LuksError};

/// Asks the user for the passphrase of a volume; `None`: nobody can be asked, or nothing was typed.
pub type Asker = fn(&str) -> Option<Zeroizing<Vec<u8>>>;

/// A mistyped passphrase is asked for again; so often.
const TRIES: usize = 3;

#[derive(Default)]
struct Keys {
    given: Vec<Zeroizing<Vec<u8>>>,
    volumes: Vec<Key>,
    ask: Option<Asker>,
}

static KEYS: Mutex<Keys> = Mutex::new(Keys { given: Vec::new(), volumes: Vec::new(), ask: None });

fn keys() -> std::sync::MutexGuard<'static, Keys> {
    KEYS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A passphrase, or the content of a key file, to be tried on every volume.
pub fn give(passphrase: Zeroizing<Vec<u8>>) {
    keys().given.push(passphrase);
}

/// How to ask for what was not given.
pub fn ask_with(asker: Asker) {
    keys().ask = Some(asker);
}

/// Something to try.
pub(super) enum Attempt<'a> {
    /// The key of another volume, or of this one when it was open before.
    Volume(&'a Key),
    Passphrase(&'a [u8]),
}

/// Tries what there is, then asks, until `try_one` gives the volume's key.
pub(super) fn find(
    name: &str,
    try_one: impl Fn(Attempt<'_>) -> Result<Option<Key>, LuksError>,
) -> Result<Key, LuksError> {
    let (known, given, ask) = {
        let keys = keys();
        (keys.volumes.clone(), keys.given.clone(), keys.ask)
    };
    for key in &known {
        if let Some(key) = try_one(Attempt::Volume(key))? {
            return Ok(key);
        }
    }
    for passphrase in &given {
        if let Some(key) = try_one(Attempt::Passphrase(passphrase))? {
            return Ok(remember(key));
        }
    }
    let mut tried = !given.is_empty();
    for _ in 0..TRIES {
        let Some(passphrase) = ask.and_then(|ask| ask(name)) else { break };
        if let Some(key) = try_one(Attempt::Passphrase(&passphrase))? {
            // Another disk of the node often has the same.
            give(passphrase);
            return Ok(remember(key));
        }
        tried = true;
    }
    Err(if tried { LuksError::WrongKey } else { LuksError::NoKey })
}

fn remember(key: Key) -> Key {
    keys().volumes.push(key.clone());
    key
}
