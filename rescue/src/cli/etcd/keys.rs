//! `rescue etcd keys SRC [PREFIX]` and `rescue etcd get SRC KEY`: what a member holds, its log included.

use crate::base::escaping;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use serde_json::{Value, json};

use super::sources::Sources;
use crate::base::refusal::Refusal;
use crate::base::schema::SCHEMA;
use crate::cli::Outcome;
use crate::cli::args::Stop;
use crate::cli::shared_flags::arguments;
use crate::etcd::read::keys::{Held, NoView, Selection, View, view};
use crate::etcd::read::kubernetes::is_secret;
use crate::etcd::read::member::MemberData;
use crate::etcd::read::status::Found;
use crate::report::raw;

arguments! {
    /// list the keys of an etcd member, its log included, without starting it; writes nothing
    #[argh(subcommand, name = "keys")]
    pub struct Keys {
        own {
            /// a disk, then perhaps the beginning of the keys wanted; with --root or --data-dir
            /// only the latter
            #[argh(positional)]
            pub words: Vec<String>,
        }
        one_root, one_data_dir, json,
    }
}

arguments! {
    /// show one key of an etcd member, its log included, without starting it; writes nothing
    #[argh(subcommand, name = "get")]
    pub struct Get {
        own {
            /// a disk, then the key; with --root or --data-dir only the key
            #[argh(positional)]
            pub words: Vec<String>,
        }
        one_root, one_data_dir,
        own {
            /// print the values of Kubernetes Secrets, too
            #[argh(switch)]
            pub show_secrets: bool,
            /// the value's own bytes and nothing else
            #[argh(switch)]
            pub raw: bool,
            /// print one JSON object (schema rescue/v1) instead of text; the value is in base64
            #[argh(switch)]
            pub json: bool,
        }
    }
}

/// The one source, and the words behind it.
fn source(
    words: &[String],
    root: Option<&PathBuf>,
    data_dir: Option<&PathBuf>,
) -> Result<(Sources, Vec<String>), Stop> {
    let (disks, rest): (&[String], &[String]) = if root.is_some() || data_dir.is_some() {
        (&[], words)
    } else {
        words.split_at(words.len().min(1))
    };
    let disks: Vec<PathBuf> = disks.iter().map(PathBuf::from).collect();
    let list = |path: Option<&PathBuf>| path.cloned().into_iter().collect::<Vec<_>>();
    Ok((
        Sources::new(&disks, &list(root), &list(data_dir), "keys")?,
        rest.to_vec(),
    ))
}

/// Lists.
pub fn run_keys(command: &Keys) -> Result<Result<Outcome>, Stop> {
    let (sources, rest) = source(
        &command.words,
        command.root.as_ref(),
        command.data_dir.as_ref(),
    )?;
    let prefix = match rest.as_slice() {
        [] => String::new(),
        [prefix] => prefix.clone(),
        _ => {
            return Err(Stop::Usage(
                "more than one prefix given: rescue etcd keys SRC [PREFIX]".to_owned(),
            ));
        }
    };
    Ok(list(command, &sources, &prefix))
}

/// Shows one.
pub fn run_get(command: &Get) -> Result<Result<Outcome>, Stop> {
    let (sources, rest) = source(
        &command.words,
        command.root.as_ref(),
        command.data_dir.as_ref(),
    )?;
    match rest.as_slice() {
        [key] => Ok(get(command, &sources, key)),
        _ => Err(Stop::Usage(
            "one key is wanted: rescue etcd get SRC KEY".to_owned(),
        )),
    }
}

fn look(sources: &Sources, selection: &Selection) -> Result<(Found, View)> {
    let (found, _) = sources.members()?;
    let [found] = found.as_slice() else {
        return Err(Refusal::new(
            format!("{} members were found", found.len()),
            "keys are read from one",
            "name one disk; rescue etcd status says which is newest",
        )
        .into());
    };
    let data = MemberData::read(&found.guest, &found.place);
    let seen = view(&found.guest, &data, selection);
    let seen = seen.map_err(|error| match error {
        NoView::Fault(_) | NoView::Missing => Refusal::new(
            format!("{}: {error}", found.source),
            "its keys cannot be read",
            "take the disk of another member; rescue etcd status says more",
        )
        .into(),
        error => {
            anyhow::Error::from(error).context(format!("reading the keys of {}", found.source))
        }
    })?;
    Ok((found.clone(), seen))
}

fn list(command: &Keys, sources: &Sources, prefix: &str) -> Result<Outcome> {
    let (found, view) = look(sources, &Selection::Prefix(prefix.as_bytes().to_vec()))?;
    let out = std::io::stdout().lock();
    let mut out = std::io::BufWriter::new(out);
    let written = if command.json {
        list_json(&mut out, &found, &view)
    } else {
        list_text(&mut out, &view)
    };
    written
        .and_then(|()| out.flush())
        .context("writing the list")?;
    doubts(&view);
    Ok(Outcome::Clean)
}

/// What keeps the answer from being certain goes to standard error, so that lists stay lists.
fn doubts(view: &View) {
    if view.uncertain > 0 {
        eprintln!(
            "rescue: the last {} of the log {} not known to be agreed on by a majority: they may be dropped when the members meet again",
            crate::base::units::count(
                usize::try_from(view.uncertain).unwrap_or(usize::MAX),
                "entry",
                "entries"
            ),
            if view.uncertain == 1 { "is" } else { "are" },
        );
    }
    for doubt in &view.doubts {
        eprintln!("rescue: {doubt}");
    }
}

fn list_text(out: &mut impl std::io::Write, view: &View) -> std::io::Result<()> {
    writeln!(
        out,
        "{:>12}  {:>8}  {:>9}  KEY",
        "REVISION", "VERSION", "BYTES"
    )?;
    for (key, held) in &view.keys {
        let kind = held
            .kind
            .as_ref()
            .map(|kind| format!("    ({kind})"))
            .unwrap_or_default();
        writeln!(
            out,
            "{:>12}  {:>8}  {:>9}  {}{kind}",
            held.modified,
            held.version,
            held.size,
            escaping::key(key)
        )?;
    }
    writeln!(
        out,
        "{} at revision {}",
        crate::base::units::count(view.keys.len(), "key", "keys"),
        view.revision
    )
}

fn list_json(out: &mut impl std::io::Write, found: &Found, view: &View) -> std::io::Result<()> {
    // One object, but written as it comes: a cluster may hold a million keys.
    let source = Value::String(found.source.clone());
    write!(
        out,
        "{{\"schema\":\"{SCHEMA}\",\"source\":{source},\"revision\":{},\"compact_revision\":{},\"applied\":{},\"uncertain\":{},\"keys\":[",
        view.revision, view.compacted, view.applied, view.uncertain
    )?;
    for (number, (key, held)) in view.keys.iter().enumerate() {
        write!(
            out,
            "{}\n{}",
            if number == 0 { "" } else { "," },
            entry(key, held)
        )?;
    }
    writeln!(out, "]}}")
}

/// Keys that are no text are given in base64, beside their readable form.
fn entry(key: &[u8], held: &Held) -> Value {
    let mut entry = json!({
        "key": escaping::key(key),
        "create_revision": held.create,
        "mod_revision": held.modified,
        "version": held.version,
        "lease": held.lease,
        "bytes": held.size,
    });
    if let Some(object) = entry.as_object_mut() {
        if std::str::from_utf8(key).is_err() {
            object.insert(
                "key_base64".to_owned(),
                base64::engine::general_purpose::STANDARD.encode(key).into(),
            );
        }
        if let Some(kind) = &held.kind {
            object.insert("kind".to_owned(), Value::String(kind.to_string()));
        }
    }
    entry
}

fn get(command: &Get, sources: &Sources, key: &str) -> Result<Outcome> {
    let (found, view) = look(sources, &Selection::Key(key.as_bytes().to_vec()))?;
    let Some(held) = view.keys.get(key.as_bytes()) else {
        return Err(Refusal::new(
            format!(
                "{} holds no key {}",
                found.source,
                escaping::key(key.as_bytes())
            ),
            "there is nothing to show",
            "rescue etcd keys lists what there is",
        )
        .into());
    };
    if is_secret(key.as_bytes(), held.kind.as_deref()) && !command.show_secrets {
        return Err(Refusal::new(
            format!("{} is a Secret", escaping::key(key.as_bytes())),
            "its value is not shown unless that is asked for",
            "add --show-secrets if nobody else sees this terminal or file",
        )
        .into());
    }
    let value = held.value.as_deref().unwrap_or_default();
    if command.json {
        let mut entry = entry(key.as_bytes(), held);
        if let Some(object) = entry.as_object_mut() {
            object.insert("schema".to_owned(), SCHEMA.into());
            object.insert(
                "value_base64".to_owned(),
                base64::engine::general_purpose::STANDARD
                    .encode(value)
                    .into(),
            );
        }
        println!("{entry}");
    } else if command.raw {
        std::io::stdout()
            .write_all(value)
            .context("writing the value")?;
    } else {
        print!("{}", raw::value(value));
    }
    doubts(&view);
    Ok(Outcome::Clean)
}
