use super::*;
use std::net::IpAddr;

struct Names;

impl Resolver for Names {
    fn host(&self, name: &str) -> Vec<IpAddr> {
        if let Ok(address) = name.parse::<IpAddr>() {
            return if name == "::2" { vec![] } else { vec![address] };
        }
        match name {
            "localhost" => vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
            _ => vec![],
        }
    }

    fn port(&self, name: &str) -> Option<u16> {
        (name == "smtp").then_some(25)
    }
}

fn read(text: &str) -> (Vec<ServiceDef>, Vec<Diagnostic>) {
    let disabled = Disabled::new(&["bad.fifo".to_owned()]);
    let interfaces = ["0.0.0.0".parse().unwrap(), "::".parse().unwrap()];
    let context = Context {
        file: "master.cf",
        default_process_limit: 100,
        chroot_default: false,
        disabled: &disabled,
        interfaces: &interfaces,
        resolver: &Names,
        compat: false,
    };
    parse(text, &context)
}

fn one(line: &str) -> ServiceDef {
    let (mut defs, diagnostics) = read(line);
    assert_eq!(diagnostics, [], "{line}");
    assert_eq!(defs.len(), 1, "{line}");
    defs.remove(0)
}

/// The complaints about a line, without the file's name.
fn complaints(line: &str) -> Vec<String> {
    let (_, diagnostics) = read(line);
    assert!(diagnostics.iter().all(|d| d.help.is_some()), "{line}: a complaint without a cure");
    diagnostics.iter().map(|d| d.to_string().replacen("master.cf:", "", 1)).collect()
}

#[test]
fn e02_e06_defaults() {
    let def = one("x unix - - - - - prog");
    assert!(def.private && def.unprivileged && !def.chroot);
    assert_eq!((def.wakeup, def.max_proc), (None, Some(100)));
    assert_eq!(&*def.key.name, "private/x");
    let def = one("x fifo n n y 60? 0 sub/prog -v");
    assert!(!def.private && !def.unprivileged && def.chroot);
    let wakeup = Wakeup { period: Duration::from_secs(60), conditional: true };
    assert_eq!((def.wakeup, def.max_proc), (Some(wakeup), None));
    assert_eq!((&*def.key.name, &*def.command), ("public/x", "sub/prog"));
    assert_eq!(def.args, ["-v"]);
}

#[test]
fn e05_a_conditional_zero_is_no_wakeup() {
    assert_eq!(one("x unix - - - 0? - p").wakeup, None);
    assert_eq!(one("x unix - - - 0 - p").wakeup, None);
}

#[test]
fn d01_d02_continuations_and_comments() {
    let (defs, diagnostics) = read("# c\n\nx unix - - -\n# inside\n  - -\n\tprog -a # b\n");
    assert_eq!(diagnostics, []);
    assert_eq!(defs[0].args, ["-a", "#", "b"]);
    assert_eq!(defs[0].line, 3);
}

#[test]
fn d08_a_dash_is_a_name() {
    assert_eq!(&*one("- unix n - - - - p").key.name, "public/-");
}

#[test]
fn e08_e10_e11_inet_names() {
    for (name, key, addresses) in [
        ("smtp", "25", &["0.0.0.0:25", "[::]:25"][..]),
        ("25", "25", &["0.0.0.0:25", "[::]:25"]),
        (":26", "26", &["0.0.0.0:26", "[::]:26"]),
        ("127.0.0.1:smtp", "[127.0.0.1]:25", &["127.0.0.1:25"]),
        ("[127.0.0.1]:27", "[127.0.0.1]:27", &["127.0.0.1:27"]),
        ("[::1]:27", "[::1]:27", &["[::1]:27"]),
        ("[ipv6:::1]:27", "[::1]:27", &["[::1]:27"]),
        ("::1:27", "[::1]:27", &["[::1]:27"]),
        ("localhost:27", "[localhost]:27", &["127.0.0.1:27", "[::1]:27"]),
        ("[localhost]:27", "[localhost]:27", &["127.0.0.1:27", "[::1]:27"]),
    ] {
        let def = one(&format!("{name} inet n - - - - p"));
        assert_eq!(&*def.key.name, key, "{name}");
        let got: Vec<_> = def
            .endpoints
            .iter()
            .map(|e| match e {
                Endpoint::Inet(address) => address.to_string(),
                Endpoint::Path(path) => path.to_string(),
            })
            .collect();
        assert_eq!(got, addresses, "{name}");
    }
}

#[test]
fn e14_who_is_local() {
    assert!(one("127.0.0.1:1 inet n - - - - p").local_only());
    assert!(!one("1 inet n - - - - p").local_only());
    assert!(one("x unix-dgram n - - - - p").local_only());
    assert!(!one("x pass n - - - - p").local_only());
}

#[test]
fn e12_the_last_of_two_entries_counts() {
    let (defs, diagnostics) =
        read("25 inet n - - - - a\nx unix - - - - - p\nsmtp inet n - - - - b\n");
    let names: Vec<_> = defs.iter().map(|d| &*d.command).collect();
    assert_eq!(names, ["b", "p"]);
    assert_eq!(
        diagnostics[0].to_string(),
        "master.cf:3:1: warning: duplicate master.cf entry for service \"smtp\" (25) -- using the last entry"
    );
}

#[test]
fn c04_a_disabled_line_is_not_looked_at() {
    assert_eq!(read("bad fifo Z Z Z Z Z p {").1, []);
    assert_eq!(read("bad fifo Z Z Z Z Z p {").0, []);
    assert_eq!(read("bad FIFO Z").1, [], "not even for its length, or the case of its type");
}

/// One line each: what is written, and everything that is said about it.
#[test]
fn d03_d05_d07_e01_e04_e08_e09_e13_every_kind_of_bad_line() {
    for (line, want) in [
        ("x", &["1:2: missing \"transport type\" field"][..]),
        ("x unix - - - - -", &["1:17: missing \"command\" field"]),
        ("x - - - - - - p", &["1:3: field \"transport type\" has no default value"]),
        ("x unix - - - - - -", &["1:18: field \"command\" has no default value"]),
        ("x INET n - - - - p", &["1:3: bad transport type: INET"]),
        ("x unix N - - - - p", &["1:8: field \"private\": bad value: \"N\""]),
        ("25 inet - - - - - p", &["1:9: inet service cannot be private"]),
        ("x unix - - - soon - p", &["1:14: field \"wakeup\": bad value: \"soon\""]),
        ("x unix - - - 60s - p", &["1:14: warning: field \"wakeup\": \"60s\" is read as 60"]),
        ("x unix - - - 60?1 - p", &["1:14: warning: field \"wakeup\": \"60?1\" is read as 60"]),
        ("x unix - - - - -1 p", &["1:16: field \"process limit\": bad value: \"-1\""]),
        (
            "x unix - - - - 99999999999 p",
            &["1:16: field \"process limit\": bad value: \"99999999999\""],
        ),
        ("x unix - - - - 5x p", &["1:16: warning: field \"process limit\": \"5x\" is read as 5"]),
        (
            "a/../../b unix n - - - - p",
            &["1:1: service name \"a/../../b\" leaves the queue directory"],
        ),
        (
            "x unix - - - - - ../sh",
            &["1:18: field \"command\": \"../sh\" leaves the daemon directory"],
        ),
        ("x unix - - - - - p {a", &["1:20: missing '}' in \"{a\""]),
        ("x unix - - - - - p {a}b", &["1:20: syntax error after '}' in \"{a}b\""]),
        ("[::1 inet n - - - - p", &["1:1: missing \"]\""]),
        ("[::1]25 inet n - - - - p", &["1:1: garbage after \"]\""]),
        ("[::1] inet n - - - - p", &["1:1: missing service information"]),
        ("host: inet n - - - - p", &["1:1: missing service information"]),
        ("[ipv6:1.2.3.4]:25 inet n - - - - p", &["1:1: malformed IPv6 address"]),
        ("[::g]:25 inet n - - - - p", &["1:1: valid hostname or network address required"]),
        ("a@b:25 inet n - - - - p", &["1:1: valid hostname or network address required"]),
        ("25a inet n - - - - p", &["1:1: garbage after numerical service: 25a"]),
        ("70000 inet n - - - - p", &["1:1: bad port number: 70000"]),
        ("nosuch inet n - - - - p", &["1:1: unknown service: nosuch"]),
        (
            "none.invalid:25 inet n - - - - p",
            &["1:1: bad hostname or network address: none.invalid:25"],
        ),
        ("[::2]:25 inet n - - - - p", &["1:1: bad hostname or network address: [::2]:25"]),
        (
            "  y unix - - - - - p",
            &[
                "1:3: warning: logical line must not start with whitespace: \"  y unix - - - - - p\"",
            ],
        ),
        ("x unix - - - - - p\0q", &["1:19: warning: text after null byte may be ignored"]),
        (
            "x unix N Z - soon -1 ../p",
            &[
                "1:8: field \"private\": bad value: \"N\"",
                "1:10: field \"unprivileged\": bad value: \"Z\"",
                "1:14: field \"wakeup\": bad value: \"soon\"",
                "1:19: field \"process limit\": bad value: \"-1\"",
                "1:22: field \"command\": \"../p\" leaves the daemon directory",
            ],
        ),
    ] {
        assert_eq!(complaints(line), want, "{line}");
    }
}

/// Its service came back with the complaint, as if it were one.
#[test]
fn e03_a_line_with_an_error_gives_no_service() {
    let (defs, complaints) = read("25 inet y - - - - p\nx unix - - - - - p\n");
    assert_eq!((defs.len(), complaints.len()), (1, 1), "{defs:?}");
}

/// It was executed as it stood, whatever daemon_directory said.
#[test]
fn e07_a_command_with_an_absolute_path_is_refused() {
    assert_eq!(
        complaints("x unix - - - - - /bin/sh"),
        ["1:18: field \"command\": \"/bin/sh\" leaves the daemon directory"]
    );
}

#[test]
fn all_errors_of_a_file_are_reported_and_the_rest_is_read() {
    let (defs, diagnostics) =
        read("a unix N - - - - p\nb unix - - - - - p\nc unix - - -\n  Z - p\n");
    assert_eq!(defs.len(), 1);
    let lines: Vec<_> = diagnostics.iter().map(|d| (d.line, d.column)).collect();
    assert_eq!(lines, [(1, 8), (4, 3)]);
}

#[test]
fn a_name_too_long_for_a_socket() {
    let name = "x".repeat(100);
    assert_eq!(complaints(&format!("{name} unix - - - - - p")).len(), 1);
    one(&format!("{} unix - - - - - p", &name[1..]));
}

#[test]
fn d12_nothing_is_expanded_quoted_or_included() {
    let def = one(&format!("x unix - - - - - p $y \"a b\" 'c \\n @file {}", "z".repeat(9000)));
    assert_eq!(def.args[..6], ["$y", "\"a", "b\"", "'c", "\\n", "@file"]);
    assert_eq!(def.args[6].len(), 9000);
}
