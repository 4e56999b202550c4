//! The keys of this run: what the user gave, how to ask for more, and what opened a volume already.
//! In memory only.
//!
//! One set for the whole process: a repair opens its disks three times, and must not ask three
//! times.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

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
    /// Time spent on volumes that nothing opened, each known by the salt of its digest.
    in_vain: Vec<(Vec<u8>, Duration)>,
}

static KEYS: Mutex<Keys> = Mutex::new(Keys {
    given: Vec::new(),
    volumes: Vec::new(),
    ask: None,
    in_vain: Vec::new(),
});

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

/// Time that was spent on the volume of this salt, and did not open it.
pub(super) fn spent_in_vain(salt: &[u8]) -> Duration {
    keys()
        .in_vain
        .iter()
        .find(|(known, _)| known == salt)
        .map_or(Duration::ZERO, |(_, time)| *time)
}

/// Adds to [`spent_in_vain`].
pub(super) fn spend_in_vain(salt: &[u8], time: Duration) {
    let in_vain = &mut keys().in_vain;
    match in_vain.iter_mut().find(|(known, _)| known == salt) {
        Some((_, spent)) => *spent = spent.saturating_add(time),
        None => in_vain.push((salt.to_vec(), time)),
    }
}

/// Something to try.
pub(super) enum Attempt<'a> {
    /// The key of another volume, or of this one when it was open before.
    Volume(&'a Key),
    Passphrase(&'a [u8]),
}

/// Tries what there is, then asks, until `try_one` gives the volume's key. `hopeless`: why no
/// passphrase can be tried at all; then none is asked for.
pub(super) fn find(
    name: &str,
    hopeless: Option<LuksError>,
    mut try_one: impl FnMut(Attempt<'_>) -> Result<Option<Key>, LuksError>,
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
    if let Some(error) = hopeless {
        return Err(error);
    }
    let mut failed = None;
    let mut try_passphrase = |passphrase: &[u8]| match try_one(Attempt::Passphrase(passphrase)) {
        Ok(None) => {
            failed.get_or_insert(LuksError::WrongKey);
            Ok(None)
        }
        // It was tried on some of the slots only; the next passphrase may open one of those.
        Err(error @ LuksError::TooMuchWork(_)) => {
            failed = Some(error);
            Ok(None)
        }
        other => other,
    };
    for passphrase in &given {
        if let Some(key) = try_passphrase(passphrase)? {
            return Ok(remember(key));
        }
    }
    for _ in 0..TRIES {
        let Some(passphrase) = ask.and_then(|ask| ask(name)) else {
            break;
        };
        if let Some(key) = try_passphrase(&passphrase)? {
            // Another disk of the node often has the same.
            give(passphrase);
            return Ok(remember(key));
        }
    }
    Err(failed.unwrap_or(LuksError::NoKey))
}

fn remember(key: Key) -> Key {
    keys().volumes.push(key.clone());
    key
}
