//! `--filter`: containers without any label of ours.

use crate::{ask_front, engine, names, said, start_samport, wait_until_serving};

/// Each kind of filter finds its containers, and no other.
#[test]
fn filters_choose_containers_by_name_label_image_and_network() {
    let docker = engine();
    docker.cli(&["network", "create", "inner"]);
    docker.run_server("web-1", &["--label", "tier=front"]);
    docker.run_server("web-2", &["--label", "tier=back", "--network", "inner"]);
    docker.run_server("db-1", &["--label", "tier=front"]);
    for (filters, expected) in [
        (&["name=web-*"][..], &["web-1", "web-2"][..]),
        (&["label=tier=front"], &["db-1", "web-1"]),
        (&["label=tier"], &["db-1", "web-1", "web-2"]),
        (&["network=inner"], &["web-2"]),
        (&["image=samport-test", "name=db-?"], &["db-1"]),
    ] {
        let filters = filters.iter().flat_map(|filter| ["--filter", filter]).collect::<Vec<_>>();
        let samport = start_samport(&docker, &[&["-p", "80:9090"], &filters[..]].concat());
        for name in expected {
            wait_until_serving(&samport, 0, name);
        }
        assert_eq!(names(&ask_front(&docker, 90)), expected, "{filters:?}");
        samport.stop();
    }
}

/// A container may come to fit a filter, or not to fit it any more.
#[test]
fn a_container_that_is_renamed_into_a_filter_is_served() {
    let docker = engine();
    docker.run_server("old", &[]);
    docker.run_server("web-1", &[]);
    let samport = start_samport(&docker, &["-p", "80:9090", "--filter", "name=web-*"]);
    wait_until_serving(&samport, 0, "web-1");
    assert!(!said(&samport, 0, "+ old "));
    docker.cli(&["rename", "old", "web-2"]);
    wait_until_serving(&samport, 0, "web-2");
    // The server's own name is as it was.
    assert_eq!(names(&ask_front(&docker, 60)), ["old", "web-1"]);
    docker.cli(&["rename", "web-1", "retired"]);
    crate::wait_until_gone(&samport, 0, "web-1");
    assert_eq!(names(&ask_front(&docker, 30)), ["old"]);
    samport.stop();
}
