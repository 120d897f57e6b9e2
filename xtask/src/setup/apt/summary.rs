//! Reading what apt-get prints.

/// What an installation would do.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Summary {
    /// Packages that are not installed yet.
    pub new: Vec<String>,
    /// Packages that are installed in an older version.
    pub upgraded: Vec<String>,
    /// Packages that would have to go.
    pub removed: Vec<String>,
    /// What has to be downloaded, in apt's words: `210 MB`.
    pub download: String,
    /// What is used of the disk afterwards, in apt's words: `812 MB`.
    pub disk: String,
}

impl Summary {
    /// Reads the output of `apt-get install --print-uris` under `LC_ALL=C`.
    pub fn of(output: &str) -> Self {
        let mut summary = Self::default();
        // Lists are a headline and indented lines of names.
        let mut list: Option<&mut Vec<String>> = None;
        for line in output.lines() {
            if let Some(names) = line.strip_prefix("  ") {
                // A `*` marks what would be purged.
                let names =
                    names.split_whitespace().map(|name| name.trim_end_matches('*').to_owned());
                if let Some(list) = &mut list {
                    list.extend(names);
                }
                continue;
            }
            list = match line {
                "The following NEW packages will be installed:" => Some(&mut summary.new),
                "The following packages will be upgraded:" => Some(&mut summary.upgraded),
                "The following packages will be REMOVED:" => Some(&mut summary.removed),
                _ => None,
            };
            if let Some(rest) = line.strip_prefix("Need to get ") {
                let size = rest.trim_end_matches('.').trim_end_matches(" of archives");
                // `12 MB/210 MB`: the first is what is not there yet.
                size.split('/').next().unwrap_or(size).clone_into(&mut summary.download);
            }
            if let Some(rest) = line.strip_prefix("After this operation, ") {
                let size = rest.split(" of additional disk space").next().unwrap_or(rest);
                size.clone_into(&mut summary.disk);
            }
        }
        summary
    }
}

/// The packages of the lines `Remv NAME [VERSION] …` and `Purg NAME [VERSION] …` of a simulation.
pub fn removed(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter_map(|line| {
        let rest = line.strip_prefix("Remv ").or_else(|| line.strip_prefix("Purg "))?;
        rest.split(' ').next()
    })
}

/// The progress in a line of `APT::Status-Fd`: percent, and what is done.
pub fn status(line: &str) -> Option<(f64, String)> {
    let mut fields = line.splitn(4, ':');
    let kind = fields.next()?;
    let subject = fields.next()?;
    let percent = fields.next()?.parse().ok()?;
    let text = fields.next()?;
    match kind {
        "dlstatus" => Some((percent, format!("downloading {subject}: {text}"))),
        "pmstatus" => Some((percent, text.to_owned())),
        _ => None,
    }
}

/// The reason that apt-get gave: the first of its errors, else its last line.
pub fn cause(output: &str) -> String {
    let errors = || output.lines().map(str::trim);
    let first = errors().find(|line| line.starts_with("E: "));
    let last = || errors().rfind(|line| !line.is_empty());
    let line = first.or_else(last).unwrap_or("it has not said why");
    let line = line.trim_start_matches("E: ").trim_start_matches("W: ");
    // `Failed to fetch URL  reason`: which one of many files it was does not matter.
    match line.strip_prefix("Failed to fetch ").and_then(|rest| rest.split_once("  ")) {
        Some((_, reason)) => reason.trim().to_owned(),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "Reading package lists...
Building dependency tree...
The following additional packages will be installed:
  libpcap0.8
Suggested packages:
  apparmor
The following packages will be REMOVED:
  busybox*
The following NEW packages will be installed:
  busybox-static ethtool libpcap0.8
  tcpdump
The following packages will be upgraded:
  libc6
1 upgraded, 4 newly installed, 1 to remove and 135 not upgraded.
Need to get 12 kB/820 kB of archives.
After this operation, 2425 kB of additional disk space will be used.
'http://mirror.invalid/pool/tcpdump.deb' tcpdump.deb 467000 SHA256:00
";

    #[test]
    fn what_an_installation_would_do_is_read_from_its_output() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let expected = Summary {
            new: words("busybox-static ethtool libpcap0.8 tcpdump"),
            upgraded: words("libc6"),
            removed: words("busybox"),
            download: "12 kB".to_owned(),
            disk: "2425 kB".to_owned(),
        };
        assert_eq!(Summary::of(OUTPUT), expected);
    }

    #[test]
    fn an_installation_that_has_nothing_to_do_is_empty() {
        let output = "Reading package lists...\nip is already the newest version (1).\n\
                      0 upgraded, 0 newly installed, 0 to remove and 3 not upgraded.\n";
        assert_eq!(Summary::of(output), Summary::default());
    }

    #[test]
    fn packages_that_would_go_are_read_from_a_simulation() {
        let output =
            "Reading state information...\nRemv haproxy [2.6]\nRemv liblua5.3-0 [5.3.6-2]\n";
        assert!(removed(output).eq(["haproxy", "liblua5.3-0"]));
    }

    #[test]
    fn progress_is_read_from_status_lines() {
        let line = "pmstatus:libpcap0.8:28.5714:Unpacking libpcap0.8:amd64 (amd64)";
        assert_eq!(status(line), Some((28.5714, "Unpacking libpcap0.8:amd64 (amd64)".to_owned())));
        let line = "dlstatus:2:15.5:Retrieving file 2 of 3 (2s remaining)";
        let text = "downloading 2: Retrieving file 2 of 3 (2s remaining)".to_owned();
        assert_eq!(status(line), Some((15.5, text)));
        assert_eq!(status("pmerror:/var/x.deb:50:subprocess failed"), None);
        assert_eq!(status(""), None);
    }

    #[test]
    fn the_reason_of_a_failure_is_its_first_error() {
        let output = "W: Some index files failed\nE: Failed to fetch http://mirror.invalid/InRelease  \
                      Temporary failure resolving 'mirror.invalid'\nE: Some index files failed to download.";
        assert_eq!(cause(output), "Temporary failure resolving 'mirror.invalid'");
        assert_eq!(
            cause("E: Unable to locate package nothing\n"),
            "Unable to locate package nothing"
        );
        assert_eq!(cause("a\nb\n\n"), "b");
        assert_eq!(cause(""), "it has not said why");
    }
}
