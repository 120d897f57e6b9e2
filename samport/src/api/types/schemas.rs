//! docs/reference/schemas, made from the words themselves, so that nothing is printed that is not described.

use std::fs;
use std::path::Path;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;

use super::{Backends, Check, Cleaning, Explained, Flows, Status, TracedPacket, Version};
use crate::model::State;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/schemas");
/// Writes the pages that are made from the program instead of comparing them.
const WRITE: &str = "SAMPORT_WRITE_REFERENCE";

/// States of backends.
pub(super) const STATES: [&str; 5] = {
    let all = State::ALL;
    [all[0].name(), all[1].name(), all[2].name(), all[3].name(), all[4].name()]
};

/// States of flows that are listed: open ones.
pub(super) const FLOW_STATES: [&str; 16] = [
    "closed",
    "syn-sent",
    "syn-received",
    "established",
    "client-finished",
    "backend-finished",
    "finished",
    "reset",
    "unanswered",
    "answered",
    "failed",
    "unverified",
    "client-finishing",
    "finishing",
    "assured",
    "client-reset",
];

#[test]
fn the_states_of_flows_are_those_of_the_core() {
    let states = samport_common::conntrack::State::ALL;
    assert_eq!(FLOW_STATES, states.map(samport_common::conntrack::State::name));
}

/// A schema as it is in its file.
fn schema<T: JsonSchema>(name: &str) -> String {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut schema = generator.into_root_schema_for::<T>();
    schema.insert("title".to_owned(), format!("samport {name} -o json").into());
    format!("{:#}\n", schema.to_value())
}

#[test]
fn the_schemas_are_those_of_what_is_printed() {
    for (name, schema) in [
        ("status", schema::<Status>("status")),
        ("backends", schema::<Backends>("backends")),
        ("flows", schema::<Flows>("flows")),
        ("check", schema::<Check>("check")),
        ("clean", schema::<Cleaning>("clean")),
        ("version", schema::<Version>("version")),
        ("explain", schema::<Explained>("explain")),
        ("trace", schema::<TracedPacket>("trace")),
    ] {
        let path = Path::new(FOLDER).join(format!("{name}.schema.json"));
        if std::env::var_os(WRITE).is_some() {
            fs::create_dir_all(FOLDER).unwrap();
            fs::write(&path, &schema).unwrap();
        }
        let stale =
            format!("{} is stale: {WRITE}=1 cargo test -p samport --lib schemas", path.display());
        assert_eq!(fs::read_to_string(&path).unwrap_or_default(), schema, "{stale}");
    }
}
