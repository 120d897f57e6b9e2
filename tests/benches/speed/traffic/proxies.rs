//! Proxies on the host: each with a thread or process for each CPU, and set up as for as little work as it can do.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use samport::lab::Watched;
use samport_tests::{Lab, Namespace};
use tempfile::TempDir;

use super::{FRONT_PORT, server};

/// Where Debian's packages have it.
pub const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// How long a proxy may take to listen.
const READY: Duration = Duration::from_secs(10);

/// Where a proxy is: in a host's namespace, for this client, which dials this address.
pub struct Place<'a> {
    pub host: &'a Namespace,
    pub client: &'a Namespace,
    pub front: SocketAddr,
}

impl<'a> From<&'a Lab> for Place<'a> {
    fn from(lab: &'a Lab) -> Self {
        Self { host: lab.host(), client: lab.client(), front: lab.front(FRONT_PORT) }
    }
}

/// A proxy at work. It ends when dropped.
pub struct Proxy {
    process: Watched,
    _folder: TempDir,
}

impl Proxy {
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn start(place: &Place<'_>, command: Command, folder: TempDir) -> Result<Self> {
        // Its connections to the backends are as many as the client's to it.
        place.host.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        let mut proxy = Self { process: Watched::spawn(command, None)?, _folder: folder };
        let begin = Instant::now();
        while place.client.run(|| std::net::TcpStream::connect(place.front)).is_err() {
            if !proxy.process.is_running() || begin.elapsed() > READY {
                bail!("it does not listen:\n{}", proxy.process.said());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Err(error) = self.process.stop() {
            eprintln!("{error:#}");
        }
    }
}

pub fn haproxy(place: &Place<'_>, containers: &[SocketAddr]) -> Result<Proxy> {
    let mut text = format!(
        "global\n\
         \x20 nbthread {}\n\
         \x20 maxconn 4000\n\
         defaults\n\
         \x20 mode tcp\n\
         \x20 option splice-auto\n\
         \x20 timeout connect 5s\n\
         \x20 timeout client 30s\n\
         \x20 timeout server 30s\n\
         listen web\n\
         \x20 bind :{FRONT_PORT}\n\
         \x20 balance roundrobin\n",
        server::threads()
    );
    for (number, container) in (1..).zip(containers) {
        let _ = writeln!(text, "  server web-{number} {container}");
    }
    let (folder, file) = written("haproxy.cfg", &text)?;
    let mut command = place.host.command("haproxy");
    // In the foreground, in one process.
    command.args(["-db", "-f", &file]);
    Proxy::start(place, command, folder).context("start haproxy")
}

pub fn nginx(place: &Place<'_>, containers: &[SocketAddr]) -> Result<Proxy> {
    let containers = containers.iter().map(ToString::to_string);
    let servers: String =
        containers.map(|container| ["    server ", &container, ";\n"].concat()).collect();
    let text = format!(
        "load_module {STREAM_MODULE};\n\
         daemon off;\n\
         user root;\n\
         worker_processes {};\n\
         pid nginx.pid;\n\
         error_log stderr;\n\
         events {{\n  worker_connections 4000;\n}}\n\
         stream {{\n  \
           upstream web {{\n{servers}  }}\n  \
           server {{\n    listen {FRONT_PORT} reuseport;\n    proxy_pass web;\n    tcp_nodelay on;\n  }}\n\
         }}\n",
        server::threads()
    );
    let (folder, file) = written("nginx.conf", &text)?;
    let mut command = place.host.command("nginx");
    command.arg("-p").arg(folder.path()).args(["-e", "stderr", "-c", &file]);
    Proxy::start(place, command, folder).context("start nginx")
}

/// A file in a folder of its own.
fn written(name: &str, text: &str) -> Result<(TempDir, String)> {
    let folder = tempfile::tempdir().context("make a folder")?;
    let file = folder.path().join(name);
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok((folder, file.display().to_string()))
}
