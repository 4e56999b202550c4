//! Flags that count for every command that opens a disk, before or behind its other words: how image files are to be read.

use std::path::PathBuf;

use super::args::Stop;
use crate::disk::given::Given;
use crate::disk::image::Format;

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
        if !matches!(flag, "--image-format" | "--image-folder") {
            rest.push(word.clone());
            continue;
        }
        let value = value.or_else(|| words.next().cloned());
        let value = value.ok_or_else(|| Stop::Usage(format!("no value given for {flag}")))?;
        if flag == "--image-folder" {
            given.folders.push(PathBuf::from(value));
        } else {
            given.format = Some(format(&value)?);
        }
    }
    Ok((rest, given))
}

fn format(name: &str) -> Result<Format, Stop> {
    Format::named(name).ok_or_else(|| Stop::Usage(format!("'{name}' is not one of raw, qcow2, vmdk")))
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
        let (rest, given) =
            taken("--image-format=qcow2 inspect a --image-folder /base b --image-folder=/other").unwrap();
        assert_eq!(rest, "inspect a b");
        let folders = vec![PathBuf::from("/base"), PathBuf::from("/other")];
        assert_eq!(given, Given { format: Some(Format::Qcow2), folders });
        assert_eq!(given.as_typed(), " --image-format qcow2 --image-folder /base --image-folder /other");
        let (rest, given) = taken("inspect -- --image-format").unwrap();
        assert_eq!((rest.as_str(), given), ("inspect -- --image-format", Given::default()));
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in ["inspect --image-format", "inspect --image-format tar a", "inspect a --image-folder"] {
            assert!(matches!(taken(line), Err(Stop::Usage(_))), "{line}");
        }
    }
}
