//! Each folder of `fixtures/scenarios` is a run: `pods.json` and `before.json` in, `plan.diff` and
//! `after.json` out; then a run that has nothing left to do. `BLESS=1` accepts what comes out.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::program::{Answer, Program, vulcanized};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/scenarios")
}

struct Scenario {
    name: String,
    folder: PathBuf,
    store: tempfile::TempDir,
}

impl Scenario {
    fn open(folder: PathBuf) -> Self {
        let name = folder
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let store = tempfile::tempdir().expect("a temporary folder");
        fs::copy(folder.join("before.json"), store.path().join("store.json")).expect("before.json");
        Self {
            name,
            folder,
            store,
        }
    }

    fn store(&self) -> PathBuf {
        self.store.path().join("store.json")
    }

    fn program(&self) -> Program {
        let more = fs::read_to_string(self.folder.join("args")).unwrap_or_default();
        vulcanized(&format!("--owner prod {more}"))
            .arg("--pods")
            .arg(self.folder.join("pods.json"))
            .arg("--store-file")
            .arg(self.store())
    }

    /// Compares with what is kept beside the inputs, or keeps it.
    fn compare(&self, file: &str, got: &str) {
        let path = self.folder.join(file);
        if std::env::var_os("BLESS").is_some() {
            fs::write(&path, got).expect("it is kept");
        }
        let wanted = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            got == wanted,
            "{}/{file}: got:\n{got}\nwanted:\n{wanted}",
            self.name
        );
    }

    fn read(&self) -> String {
        fs::read_to_string(self.store()).expect("the store")
    }

    fn check(&self) {
        let said = |Answer { code, out, err }: Answer| format!("{out}{err}exit code {code}\n");
        let before = self.read();
        let plan = self.program().arg("--dry-run").run();
        let colour = self
            .program()
            .arg("--dry-run")
            .arg("--color")
            .arg("always")
            .run();
        assert_eq!(
            before,
            self.read(),
            "{}: a dry run writes nothing",
            self.name
        );
        assert_eq!(plan.code, colour.code);
        // Paint is all the difference, and the only control character.
        let mut plain = colour.out;
        for code in ["0", "1", "31", "32", "33", "36"] {
            plain = plain.replace(&format!("\u{1b}[{code}m"), "");
        }
        assert_eq!(plan.out, plain, "{}", self.name);
        let control = |c: char| c.is_control() && c != '\n';
        assert!(
            !plan.out.contains(control),
            "{}: a control character",
            self.name
        );
        self.compare("plan.diff", &said(plan));
        let applied = self.program().run();
        self.compare("applied", &said(applied));
        self.compare("after.json", &self.read());
        let modified = fs::metadata(self.store())
            .expect("the store")
            .modified()
            .expect("a time");
        let again = self.program().run();
        assert!(matches!(again.code, 0 | 3), "{}: {again}", self.name);
        let after = fs::metadata(self.store())
            .expect("the store")
            .modified()
            .expect("a time");
        assert_eq!(
            modified, after,
            "{}: the second run writes nothing: {again}",
            self.name
        );
    }
}

#[test]
fn every_scenario() {
    let folders = fs::read_dir(folder())
        .expect("scenarios")
        .map(|entry| entry.expect("one").path());
    let scenarios = folders.map(Scenario::open).collect::<Vec<_>>();
    assert!(scenarios.len() > 40, "the scenarios are there");
    for scenario in scenarios {
        scenario.check();
    }
}
