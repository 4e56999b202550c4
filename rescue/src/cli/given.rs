//! Flags that count for every command that opens a disk, before or behind its other words: how
//! image files are to be read, what opens encrypted volumes, where to put what does not fit into
//! memory.

use crate::base::shell;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::args::Stop;
use super::certs::passphrase;
use crate::disk::given::Given;
use crate::disk::image::Format;
use crate::disk::luks::keys;

const VARIABLE: &str = "RESCUE_LUKS_PASSPHRASE";
/// cryptsetup reads no more of a key file, either.
const LARGEST_KEY: usize = 8 << 20;

/// Takes them out of the words of a command line.
///
/// # Errors
/// A usage error for a value that makes no sense.
pub fn take(words: &[String]) -> Result<(Vec<String>, Given), Stop> {
    let (mut rest, mut given) = (Vec::new(), Given::default());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            rest.push(word.clone());
            rest.extend(words.cloned());
            break;
        }
        let (flag, value) = match word.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        if !matches!(
            flag,
            "--image-format" | "--image-folder" | "--luks-key-file" | "--spill"
        ) {
            rest.push(word.clone());
            continue;
        }
        let value = value.or_else(|| words.next().cloned());
        let value = value.ok_or_else(|| Stop::Usage(format!("no value given for {flag}")))?;
        match flag {
            "--image-folder" => given.folders.push(PathBuf::from(value)),
            "--spill" => given.spill = Some(PathBuf::from(value)),
            "--luks-key-file" => given.luks_key_files.push(PathBuf::from(value)),
            _ => given.format = Some(format(&value)?),
        }
    }
    Ok((rest, given))
}

/// Makes it what counts for this run: key files are read, and the terminal is where passphrases are
/// asked for.
///
/// # Errors
/// A usage error for a key file that cannot be read.
pub fn apply(given: Given) -> Result<(), Stop> {
    for path in &given.luks_key_files {
        keys::give(key_file(path)?);
    }
    // As cryptsetup takes a passphrase that is piped to it: every byte, up to the end.
    if let Some(passphrase) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        keys::give(Zeroizing::new(passphrase.into_encoded_bytes()));
    }
    keys::ask_with(|volume| {
        passphrase::try_to_ask(&format!("Passphrase of the encrypted volume {volume}"))
    });
    given.set();
    Ok(())
}

/// Its whole content, line ends too, as cryptsetup has it.
fn key_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Stop> {
    let trouble = |what: String| {
        Stop::Usage(format!(
            "reading the key file {}: {what}",
            shell::quoted(path)
        ))
    };
    let file = File::open(path).map_err(|error| trouble(error.to_string()))?;
    // No reallocation, which would leave pieces of the key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LARGEST_KEY + 1));
    file.take(LARGEST_KEY as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| trouble(error.to_string()))?;
    match bytes.len() {
        0 => Err(trouble("it is empty".into())),
        1..=LARGEST_KEY => Ok(bytes),
        _ => Err(trouble("it is larger than any key (8 MiB)".into())),
    }
}

fn format(name: &str) -> Result<Format, Stop> {
    Format::named(name)
        .ok_or_else(|| Stop::Usage(format!("'{name}' is not one of raw, qcow2, vmdk")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(line: &str) -> Result<(String, Given), Stop> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        take(&words).map(|(rest, given)| (rest.join(" "), given))
    }

    #[test]
    fn anywhere_on_the_line() {
        let (rest, given) = taken(
            "--image-format=qcow2 inspect a --image-folder /base b --image-folder=/other \
                --spill /big/x",
        )
        .unwrap();
        assert_eq!(rest, "inspect a b");
        let folders = vec![PathBuf::from("/base"), PathBuf::from("/other")];
        let spill = Some(PathBuf::from("/big/x"));
        assert_eq!(
            given,
            Given {
                format: Some(Format::Qcow2),
                folders,
                spill,
                ..Given::default()
            }
        );
        let typed =
            " --image-format qcow2 --image-folder /base --image-folder /other --spill /big/x";
        assert_eq!(given.as_typed(), typed);
        let (rest, given) = taken("inspect -- --image-format").unwrap();
        assert_eq!(
            (rest.as_str(), given),
            ("inspect -- --image-format", Given::default())
        );
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            "inspect --image-format",
            "inspect --image-format tar a",
            "inspect a --image-folder",
            "inspect a --spill",
        ] {
            assert!(matches!(taken(line), Err(Stop::Usage(_))), "{line}");
        }
    }
}
