//! What `-o json` prints is what docs/reference/schemas describes: nothing less, nothing more.

use std::fs;
use std::path::Path;

use samport::lab::Watched;
use samport_tests::daemon::{samport, samport_command};
use samport_tests::load::{Connection, ask};
use samport_tests::served::Served;
use samport_tests::traces::undisturbed;
use samport_tests::{Lab, TIMEOUT, eventually};
use serde_json::Value;

use crate::lab;

fn schema(name: &str) -> Value {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/schemas"));
    let text = fs::read_to_string(folder.join(format!("{name}.schema.json"))).expect("a schema");
    serde_json::from_str(&text).expect("JSON")
}

/// What a command prints. Instances of other tests come and go while it looks at them.
fn document(lab: &Lab, args: &[&str]) -> Value {
    eventually(&format!("samport {args:?} prints a document"), || {
        let output = samport(lab.host(), &[args, &["-o", "json"]].concat());
        serde_json::from_slice(&output.stdout).ok()
    })
}

/// Panics with everything that is not as the schema says.
fn assert_described(name: &str, document: &Value) {
    let schema = schema(name);
    assert!(jsonschema::meta::is_valid(&schema), "{name} is no schema");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let errors: Vec<_> =
        validator.iter_errors(document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{name}: {errors:#?} in {document:#}");
    assert_eq!(document["schema"], 1);
}

#[test]
fn what_a_running_samport_says_is_described() {
    let served = Served::start(lab(2), &["--drain", "100"]);
    let front = served.fronts()[0];
    assert_eq!(ask(&served.lab, front, 20).total(), 20);
    let _held = served.lab.client().run(|| {
        let mut connection = Connection::open(front).unwrap();
        connection.get("/").unwrap();
        connection
    });
    served.order(&["drain", "web-1"]);
    let flows = document(&served.lab, &["flows"]);
    assert_ne!(flows["flows"].as_array().map(Vec::len), Some(0));
    assert_described("flows", &flows);
    for name in ["status", "backends", "version"] {
        assert_described(name, &document(&served.lab, &[name]));
    }
    assert_described("clean", &document(&served.lab, &["clean", "--dry-run"]));
    for (client, dialled) in [
        ("192.0.2.2:20000", "192.0.2.1:80"),
        ("192.0.2.2:20000", "192.0.2.1:81"),
        ("127.0.0.1:20000", "127.0.0.1:80"),
    ] {
        assert_described("explain", &document(&served.lab, &["explain", client, dialled]));
    }
    let front_again = served.fronts()[1];
    let args = ["trace", "--count", "4", "-o", "json"];
    let tracer = Watched::spawn(samport_command(served.lab.host(), &args), None).unwrap();
    tracer.wait_for_line("tracing ", TIMEOUT).unwrap();
    assert_eq!(ask(&served.lab, front_again, 1).total(), 1);
    let packets = eventually("four packets are told of", || {
        let lines = tracer.lines();
        let told = lines.iter().filter_map(|line| serde_json::from_str(&line.text).ok());
        Some(told.collect::<Vec<Value>>()).filter(|told| told.len() == 4)
    });
    for packet in packets {
        assert_described("trace", &packet);
    }
    assert_described("check", &document(&served.lab, &["check", "-i", "eth0", "-p", "80"]));
}

#[test]
fn what_a_killed_samport_has_left_is_described() {
    let _undisturbed = undisturbed();
    let mut served = Served::start(lab(2), &[]);
    served.daemon.kill9();
    for name in ["status", "backends", "flows"] {
        assert_described(name, &document(&served.lab, &[name]));
    }
    let cleaning = document(&served.lab, &["clean", "--dry-run"]);
    assert_described("clean", &cleaning);
    let outcomes = cleaning["instances"].as_array().expect("instances").iter();
    assert!(outcomes.clone().any(|one| one["outcome"] == "would-remove"), "{cleaning:#}");
}

/// A field nobody has described fails, at any depth; so does one that is missing.
#[test]
fn a_field_too_many_or_too_few_is_seen() {
    let served = Served::start(lab(1), &[]);
    let document = document(&served.lab, &["backends"]);
    let validator = jsonschema::validator_for(&schema("backends")).unwrap();
    assert!(validator.is_valid(&document));
    let (mut more, mut less) = (document.clone(), document.clone());
    more["backends"][0]["surprise"] = 1.into();
    less["backends"][0].as_object_mut().unwrap().remove("weight");
    let mut strange = document;
    strange["backends"][0]["state"] = "tired".into();
    for wrong in [more, less, strange] {
        assert!(!validator.is_valid(&wrong), "{wrong:#}");
    }
}
