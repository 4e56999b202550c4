//! The unit loader against a real systemd (PID 1 in QEMU): each layout's unit is started there, its
//! program prints the argv it was given, and the loader must have said the same, argv for argv. So
//! must it for what a repair lays over each of them.

mod layouts;
mod machine;

use anyhow::{Context as _, Result, ensure};
use layouts::{Entry, Layout};
use machine::Verdict;
use rescue::systemd::without_flag::{self, Edit};
use rescue::systemd::{Command, Unit};

const FLAG: &str = "--bootstrap-kubeconfig";

/// What the loader says that systemd will do.
fn expected(layout: &Layout) -> Verdict {
    let Some(unit) = Unit::load(&layout.guest(), &layout.unit) else {
        return Verdict {
            load_state: "not-found".to_owned(),
            ..Verdict::default()
        };
    };
    let get = |name: &str| unit.variable(name).map(|variable| variable.value.as_str());
    let argv = |command: &Command| {
        command
            .expand(get)
            .into_iter()
            .map(|(_, word)| word)
            .collect()
    };
    let starts = !unit.masked && unit.refusals.is_empty();
    Verdict {
        started: if starts {
            unit.exec_start.iter().map(argv).collect()
        } else {
            Vec::new()
        },
        drop_ins: unit.drop_ins.iter().map(ToString::to_string).collect(),
        load_state: String::new(),
    }
}

/// The layout with a repair's files on it, where the unit carries the flag.
fn repaired(layout: &Layout, way: &str) -> Option<Layout> {
    let guest = layout.guest();
    let unit = Unit::load(&guest, &layout.unit)?;
    if !unit.refusals.is_empty()
        || !unit
            .argv()
            .iter()
            .any(|word| without_flag::spells(word, FLAG))
    {
        return None;
    }
    let edit: Edit = match way {
        "drop-in" => without_flag::by_drop_in(&guest, &unit, FLAG, "Written by rescue."),
        _ => without_flag::in_place(&guest, &unit, FLAG),
    }
    .unwrap_or_else(|why| panic!("{} cannot be repaired by {way}: {why}", layout.name));
    let mut layout = Layout {
        name: format!("{}+{way}", layout.name),
        ..layout.clone()
    };
    for (path, text) in edit.files {
        let path = path.to_string().trim_start_matches('/').to_owned();
        layout.files.retain(|(there, _)| *there != path);
        layout.files.push((path, Entry::Bytes(text.into_bytes())));
    }
    Some(layout)
}

#[test]
fn the_loader_agrees_with_systemd() -> Result<()> {
    let originals = layouts::all();
    let repairs: Vec<Layout> = ["drop-in", "in-place"]
        .iter()
        .flat_map(|way| originals.iter().filter_map(|layout| repaired(layout, way)))
        .collect();
    ensure!(
        originals.len() >= 12 && repairs.len() >= 12,
        "{} layouts, {} repairs",
        originals.len(),
        repairs.len()
    );
    let all: Vec<Layout> = originals
        .iter()
        .chain(&repairs)
        .enumerate()
        .map(|(number, layout)| layout.numbered(number))
        .collect();
    let verdicts = machine::run(&all)?;

    let mut differences = Vec::new();
    for layout in &all {
        let verdict = verdicts
            .get(&layout.name)
            .with_context(|| format!("no verdict on {}", layout.name))?;
        let expected = expected(layout);
        if verdict.started != expected.started {
            differences.push(format!(
                "{}:\n  systemd ({}): {:?}\n  loader:  {:?}",
                layout.name, verdict.load_state, verdict.started, expected.started
            ));
        }
        // systemd has no drop-in paths for a masked unit that it never loaded.
        if verdict.load_state == "loaded" && verdict.drop_ins != expected.drop_ins {
            differences.push(format!(
                "{}:\n  systemd: {:?}\n  loader:  {:?}",
                layout.name, verdict.drop_ins, expected.drop_ins
            ));
        }
    }
    ensure!(
        differences.is_empty(),
        "{} differences\n{}",
        differences.len(),
        differences.join("\n")
    );

    for (number, repair) in repairs
        .iter()
        .enumerate()
        .map(|(index, repair)| (originals.len() + index, repair))
    {
        // Back from `k007` to the common name, so that original and repair can be compared.
        let started = |number: usize, name: &str| -> Vec<String> {
            let argv = verdicts
                .get(name)
                .and_then(|verdict| verdict.started.first())
                .cloned()
                .unwrap_or_default();
            argv.into_iter()
                .map(|word| word.replace(&format!("k{number:03}"), "kubelet"))
                .collect()
        };
        let name = repair.name.split('+').next().unwrap_or_default();
        let original = originals
            .iter()
            .position(|layout| layout.name == name)
            .context("a repair has an original")?;
        let without = without_flag::argv_without(&started(original, name), FLAG);
        ensure!(
            started(number, &repair.name) == without,
            "{} changed more than the flag",
            repair.name
        );
        ensure!(
            without.len() > 1 && without.iter().all(|word| !word.contains("bootstrap")),
            "{name}: {without:?}"
        );
    }
    Ok(())
}
