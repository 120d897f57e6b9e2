//! Rules of iptables, as Docker and the article write them, and of nftables.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use samport_tests::{Lab, Namespace};

use super::FRONT_PORT;

/// What Docker 20.10 sets up before any container runs, as `iptables-save` prints it; only the
/// bridge has another name here. `{nat}` and `{filter}` are where a published port's rules go.
const DOCKER: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o br0 -j DOCKER
-A FORWARD -i br0 ! -o br0 -j ACCEPT
-A FORWARD -i br0 -o br0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i br0 ! -o br0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o br0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
{filter}COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.30.0.0/24 ! -o br0 -j MASQUERADE
-A DOCKER -i br0 -j RETURN
{nat}COMMIT
";

/// A host on which Docker runs and publishes nothing.
pub fn docker_without_ports(lab: &Lab) -> Result<()> {
    restore(lab.host(), &DOCKER.replace("{filter}", "").replace("{nat}", ""))
}

/// The same with a rule that lets a container's port be dialled from outside, published or not.
pub fn docker_with_one_let_in(lab: &Lab, container: SocketAddr) -> Result<()> {
    restore(lab.host(), &DOCKER.replace("{filter}", &let_in(container)).replace("{nat}", ""))
}

fn let_in(container: SocketAddr) -> String {
    let (ip, port) = (container.ip(), container.port());
    format!("-A DOCKER -d {ip}/32 ! -i br0 -o br0 -p tcp -m tcp --dport {port} -j ACCEPT\n")
}

/// The same after `docker run -p 80:PORT` of one container.
pub fn docker_with_published(lab: &Lab, container: SocketAddr) -> Result<()> {
    let (ip, port) = (container.ip(), container.port());
    let nat = format!(
        "-A POSTROUTING -s {ip}/32 -d {ip}/32 -p tcp -m tcp --dport {port} -j MASQUERADE\n\
         -A DOCKER ! -i br0 -p tcp -m tcp --dport {FRONT_PORT} -j DNAT --to-destination {container}\n"
    );
    restore(lab.host(), &DOCKER.replace("{filter}", &let_in(container)).replace("{nat}", &nat))
}

/// The article's rules, put before Docker's. Each is inserted at the top, so the last container's
/// comes first: 1/N of the connections are its own, 1/(N-1) of the rest the next one's, and the
/// first container takes what is left.
pub fn statistic(lab: &Lab, containers: &[SocketAddr]) -> Result<()> {
    let mut script = "*filter\n-I FORWARD 1 -j ACCEPT\nCOMMIT\n*nat\n".to_owned();
    for chain in ["OUTPUT", "PREROUTING"] {
        for (share, container) in (1_u32..).zip(containers) {
            let probability = 1.0 / f64::from(share);
            let _ = writeln!(
                script,
                "-I {chain} 1 -p tcp --dport {FRONT_PORT} -m statistic --mode random \
                 --probability {probability:.11} -j DNAT --to-destination {container}"
            );
        }
    }
    script += "COMMIT\n";
    restore(lab.host(), &script)
}

/// The same with one rule of nftables, a map that a random number is looked up in, before Docker's,
/// whose priority is -100.
pub fn numgen(lab: &Lab, containers: &[SocketAddr]) -> Result<()> {
    restore(lab.host(), "*filter\n-I FORWARD 1 -j ACCEPT\nCOMMIT\n")?;
    let map: Vec<String> = (0..)
        .zip(containers)
        .map(|(number, container)| format!("{number} : {} . {}", container.ip(), container.port()))
        .collect();
    let rule = format!(
        "tcp dport {FRONT_PORT} dnat ip addr . port to numgen random mod {} map {{ {} }}",
        containers.len(),
        map.join(", ")
    );
    let script = format!(
        "table ip web {{\n\
         chain prerouting {{\ntype nat hook prerouting priority -101;\n{rule}\n}}\n\
         chain output {{\ntype nat hook output priority -101;\n{rule}\n}}\n\
         }}\n"
    );
    feed(lab.host(), "nft", &["-f", "-"], &script)
}

/// Gives rules to `iptables-restore`, which adds them to those there are.
fn restore(namespace: &Namespace, rules: &str) -> Result<()> {
    feed(namespace, "iptables-restore", &["--wait", "--noflush"], rules)
}

fn feed(namespace: &Namespace, program: &str, args: &[&str], text: &str) -> Result<()> {
    let mut command = namespace.command(program);
    command.args(args).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take().with_context(|| format!("{program} has no stdin"))?;
    // A broken pipe means that it has given up: its own words, below, say why.
    let _ = stdin.write_all(text.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().with_context(|| format!("wait for {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}\n{text}", said.trim());
    Ok(())
}
