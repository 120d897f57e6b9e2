//! Containers in an overlay network of Docker's swarm mode.

use samport_tests::docker::SERVER_IMAGE;
use samport_tests::load::get;

use crate::{
    LABEL, ask_front, engine, front, heard, names, start_samport, wait_until_gone,
    wait_until_serving,
};

/// Containers in an overlay network are reached by their leg in `docker_gwbridge`, be they started by
/// hand or by a service, whose tasks come and go.
#[test]
fn containers_in_an_overlay_network_serve_by_their_leg_on_the_host() {
    let docker = engine();
    docker.cli(&["swarm", "init", "--advertise-addr", "192.0.2.1"]);
    docker.cli(&["network", "create", "-d", "overlay", "--attachable", "mesh"]);
    docker.run_server("by-hand", &[LABEL[0], LABEL[1], "--network", "mesh"]);
    docker.run_server("guest", &["--network", "mesh"]);
    docker.run_server("bridged", &LABEL);
    let samport = start_samport(&docker, &["-p", "80:9090"]);
    let line = wait_until_serving(&samport, 0, "by-hand");
    assert!(line.text.contains(" by peer"), "{}", line.text);
    let format = "{{.NetworkSettings.Networks.mesh.IPAddress}}:";
    let on_mesh = docker.cli(&["inspect", "-f", format, "by-hand"]);
    assert!(!line.text.contains(&on_mesh), "{on_mesh} is not to be reached: {}", line.text);
    wait_until_serving(&samport, 0, "bridged");
    assert_eq!(names(&ask_front(&docker, 60)), ["bridged", "by-hand"]);

    let mark = samport.mark();
    let create = ["service", "create", "-d", "--no-resolve-image", "--name", "web"];
    let task = ["--replicas", "2", "--network", "mesh", "--hostname", "web-{{.Task.Slot}}"];
    let label = ["--container-label", "samport.port=80", "--env", "INSTANCE=web-{{.Task.Slot}}"];
    docker.cli(&[&create[..], &task, &label, &[SERVER_IMAGE]].concat());
    for name in ["+ web.1.", "+ web.2."] {
        heard(&samport, mark, &[name, " by peer"]);
    }
    assert_eq!(names(&ask_front(&docker, 120)), ["bridged", "by-hand", "web-1", "web-2"]);
    docker.lab().host().run(|| get("127.0.0.1:80".parse().unwrap(), "/")).unwrap();
    docker.inside("guest", || get(front(&docker), "/")).unwrap();

    let mark = samport.mark();
    docker.cli(&["service", "rm", "web"]);
    heard(&samport, mark, &["- web.1.", " gone"]);
    heard(&samport, mark, &["- web.2.", " gone"]);
    docker.cli(&["rm", "-f", "by-hand"]);
    wait_until_gone(&samport, mark, "by-hand");
    assert_eq!(names(&ask_front(&docker, 30)), ["bridged"]);
    samport.stop();
    docker.cli(&["rm", "-f", "guest"]);
    docker.cli(&["swarm", "leave", "--force"]);
}
