//! walgate's own checks of a sink, on files: a receiver without a link, so that what breaks links is skipped.

use serde_json::{Value, json, value::RawValue};
use walgate_sink::conformance::{self, Able, Carries, Harness, Received, Refused, Unable, UnknownTarget};

use super::*;

const NO_LINK: Unable = Unable("a file has no link that could break");

struct Files(tempfile::TempDir);

#[derive(Deserialize)]
struct Line<'a> {
    id: String,
    key: Option<String>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

impl Harness for Files {
    fn config(&self) -> Value {
        json!({ "folder": self.0.path() })
    }

    fn target(&self) -> Vec<(&'static str, String)> {
        vec![("name", "events.ndjson".to_owned())]
    }

    fn read(&mut self) -> Vec<Received> {
        let text = std::fs::read_to_string(self.0.path().join("events.ndjson")).unwrap_or_default();
        let lines = text.lines().map(|line| serde_json::from_str::<Line<'_>>(line).unwrap());
        lines
            .map(|Line { id, key, payload }| {
                // Text is a JSON string.
                let body = serde_json::from_str(payload.get()).unwrap_or_else(|_| payload.get().to_owned()).into();
                Received { id, key, headers: Vec::new(), body }
            })
            .collect()
    }

    fn heal(&mut self) {}

    fn cut(&mut self) -> Able {
        Err(NO_LINK)
    }

    fn stop(&mut self) -> Able {
        Err(NO_LINK)
    }

    fn start(&mut self) {}

    fn freeze(&mut self) -> Able {
        Err(NO_LINK)
    }

    fn lose_answers(&mut self) -> Able {
        Err(NO_LINK)
    }

    fn refused(&mut self) -> Result<Refused, Unable> {
        Err(Unable("a folder asks for no credentials"))
    }

    fn unknown_target(&mut self) -> Result<UnknownTarget, Unable> {
        Err(Unable("a file that is not there is made"))
    }

    fn carries(&self) -> Carries {
        Carries::default().with_headers(false).with_binary(false)
    }

    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }
}

#[test]
fn it_conforms() {
    conformance::run::<FileSinkFactory>(&mut Files(tempfile::tempdir().unwrap())).assert_passed();
}
