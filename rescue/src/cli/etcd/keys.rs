//! `rescue etcd keys SRC [PREFIX]` and `rescue etcd get SRC KEY`: what a member holds, its log
//! included.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::sources::EtcdSources;
use crate::base::escaping;
use crate::base::refusal::Refusal;
use crate::cli::Outcome;
use crate::cli::args::{self, Stop};
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::Terminal;
use crate::etcd::read::keys::{Held, Selection, View};
use crate::etcd::read::kubernetes::is_secret;
use crate::report::{etcd_keys, raw};
use crate::session::Session;

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
) -> Result<(EtcdSources, Vec<String>), Stop> {
    let (disks, rest): (&[String], &[String]) = if root.is_some() || data_dir.is_some() {
        (&[], words)
    } else {
        words.split_at(words.len().min(1))
    };
    let disks: Vec<PathBuf> = disks.iter().map(PathBuf::from).collect();
    let list = |path: Option<&PathBuf>| path.cloned().into_iter().collect::<Vec<_>>();
    Ok((
        EtcdSources::new(&disks, &list(root), &list(data_dir), "keys")?,
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

fn view(sources: &EtcdSources, selection: &Selection) -> Result<(String, View)> {
    let settings = args::with_now(None);
    Session {
        sources: &sources.disks,
        settings: &settings,
        ui: &Terminal,
    }
    .view_of_one_member(&sources.data_dirs, selection)
}

fn list(command: &Keys, sources: &EtcdSources, prefix: &str) -> Result<Outcome> {
    let (source, view) = view(sources, &Selection::Prefix(prefix.as_bytes().to_vec()))?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let written = if command.json {
        etcd_keys::list_json(&mut out, &source, &view)
    } else {
        etcd_keys::list_text(&mut out, &view)
    };
    written
        .and_then(|()| out.flush())
        .context("writing the list")?;
    print_doubts(&view);
    Ok(Outcome::Clean)
}

/// What keeps the answer from being certain goes to standard error, so that lists stay lists.
fn print_doubts(view: &View) {
    for doubt in etcd_keys::doubts(view) {
        eprintln!("rescue: {doubt}");
    }
}

fn get(command: &Get, sources: &EtcdSources, key: &str) -> Result<Outcome> {
    let (source, view) = view(sources, &Selection::Key(key.as_bytes().to_vec()))?;
    let Some(held) = view.keys.get(key.as_bytes()) else {
        return Err(Refusal::new(
            format!("{source} holds no key {}", escaping::key(key.as_bytes())),
            "there is nothing to show",
            "rescue etcd keys lists what there is",
        )
        .into());
    };
    if !command.show_secrets {
        refuse_secret(key, held)?;
    }
    let value = held.value.as_deref().unwrap_or_default();
    if command.json {
        println!("{}", etcd_keys::value_json(key.as_bytes(), held));
    } else if command.raw {
        std::io::stdout()
            .write_all(value)
            .context("writing the value")?;
    } else {
        print!("{}", raw::value(value));
    }
    print_doubts(&view);
    Ok(Outcome::Clean)
}

fn refuse_secret(key: &str, held: &Held) -> Result<(), Refusal> {
    if !is_secret(key.as_bytes(), held.kind.as_deref()) {
        return Ok(());
    }
    Err(Refusal::new(
        format!("{} is a Secret", escaping::key(key.as_bytes())),
        "its value is not shown unless that is asked for",
        "add --show-secrets if nobody else sees this terminal or file",
    ))
}
