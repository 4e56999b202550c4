//! The catalogue of checks as Markdown, for docs/checks.md.

use std::fmt::Write as _;

use crate::checks::CATALOGUE;

/// A table of all failure modes, in the catalogue's order.
pub fn markdown() -> String {
    let mut out = "| mode | severity | what is wrong |\n| --- | --- | --- |\n".to_owned();
    for mode in CATALOGUE.iter().flat_map(|check| check.modes) {
        let _ = writeln!(
            out,
            "| `{}` | {} | {} |",
            mode.id,
            mode.severity.word(),
            mode.says
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    const BEGIN: &str = "<!-- modes: made from the catalogue -->\n";
    const END: &str = "<!-- /modes -->";

    #[test]
    fn identifiers_are_unique_and_modes_begin_with_their_check() {
        let mut seen = BTreeSet::new();
        for check in CATALOGUE {
            assert!(seen.insert(check.id), "{} is there twice", check.id);
            assert!(!check.modes.is_empty(), "{} has no modes", check.id);
            for mode in check.modes {
                assert_eq!(mode.check(), check.id, "{}", mode.id);
                assert!(seen.insert(mode.id), "{} is there twice", mode.id);
                let is_clause = !mode.says.ends_with('.') && !mode.says.is_empty();
                assert!(is_clause, "{} says \"{}\"", mode.id, mode.says);
            }
        }
    }

    #[test]
    fn a_check_comes_after_those_that_it_names() {
        let ids: Vec<&str> = CATALOGUE.iter().map(|check| check.id).collect();
        for (index, check) in CATALOGUE.iter().enumerate() {
            for earlier in check.after {
                let is_earlier = ids[..index].contains(earlier);
                assert!(is_earlier, "{} must come after {earlier}", check.id);
            }
        }
    }

    /// `RESCUE_WRITE_DOCS=1` writes the table instead.
    #[test]
    fn the_page_of_checks_has_every_check_and_mode() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/checks.md");
        let page = fs::read_to_string(&path).expect("docs/checks.md");
        for check in CATALOGUE {
            let row = format!("| `{}` |", check.id);
            assert!(page.contains(&row), "docs/checks.md has no row {row}");
        }
        let (head, rest) = page.split_once(BEGIN).expect("the first marker");
        let (table, tail) = rest.split_once(END).expect("the second marker");
        if std::env::var_os("RESCUE_WRITE_DOCS").is_some() {
            let page = format!("{head}{BEGIN}{}{END}{tail}", markdown());
            fs::write(&path, page).expect("docs/checks.md is written");
            return;
        }
        let advice = "run: RESCUE_WRITE_DOCS=1 cargo test -p rescue the_page_of_checks";
        assert_eq!(
            table,
            markdown(),
            "docs/checks.md is not up to date; {advice}"
        );
    }
}
