//! Tests of [`super`].

use super::*;

fn parsed(text: &str) -> ExportUri {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn every_kind_of_place_is_read() {
    let unix = parsed("nbd+unix:///a%20b?socket=/run/x%26y.sock");
    assert_eq!((unix.place(), unix.export()), (&Place::Unix("/run/x&y.sock".into()), "a b"));
    let tcp = parsed("nbd://Store.Example:7/vol");
    let place = Place::Tcp { host: "store.example".to_owned(), port: 7 };
    assert_eq!((tcp.place(), tcp.export(), tcp.tls()), (&place, "vol", None));
    let six = parsed("nbd://[::1]");
    assert_eq!((six.place(), six.export()), (&Place::Tcp { host: "::1".to_owned(), port: 10809 }, ""));
    let tls = parsed("nbds://store/x?tls-certificates=/etc/pki&tls-hostname=other");
    assert_eq!(tls.server_name(), "other");
    assert_eq!(tls.tls().map(|tls| tls.certificates.as_path()), Some(Path::new("/etc/pki")));
    assert_eq!(parsed("nbds+unix:///?socket=/s&tls-certificates=/p").server_name(), "localhost");
    assert_eq!(parsed("nbd://h//x").export(), "/x", "only the first slash is not the name's");
}

#[test]
fn equal_places_have_one_canonical_text() {
    for (text, canonical) in [
        ("NBD://HOST:10809", "nbd://host/"),
        ("nbd://[0:0::1]:9/%61", "nbd://[::1]:9/a"),
        ("nbd+unix:///?socket=%2Frun%2Fs", "nbd+unix:///?socket=/run/s"),
        (
            "nbds://h/?tls-hostname=Q&tls-certificates=/c d",
            "nbds://h/?tls-certificates=/c%20d&tls-hostname=q",
        ),
    ] {
        let uri = parsed(text);
        assert_eq!(uri.to_string(), canonical);
        assert_eq!(parsed(canonical), uri);
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (text, part) in [
        ("/dev/sda", "the scheme"),
        ("http://h/", "the scheme"),
        ("nbd:h", "the scheme"),
        ("nbd:///x", "the host"),
        ("nbd://[::1/x", "the host"),
        ("nbd://a b/x", "the host"),
        ("nbd+unix://h/x?socket=/s", "the host"),
        ("nbd://h:0/", "the port"),
        ("nbd://h:+5/", "the port"),
        ("nbd://h:65536/", "the port"),
        ("nbd://u@h/", "the user"),
        ("nbd://u:secret@h/", "the user"),
        ("nbd://h/x#y", "the fragment"),
        ("nbd://h/%", "the export name"),
        ("nbd://h/%zz", "the export name"),
        ("nbd://h/%00", "the export name"),
        ("nbd://h/%ff", "the export name"),
        ("nbd+unix:///x", "socket=PATH"),
        ("nbd+unix:///x?socket=s", "socket=PATH"),
        ("nbd://h/x?socket=/s", "socket=PATH"),
        ("nbd+unix:///x?socket=/s&socket=/s", "a parameter"),
        ("nbd+unix:///x?socket=/s&color=red", "a parameter"),
        ("nbd+unix:///x?socket", "a parameter"),
        ("nbds://h/x", "tls-certificates=DIR"),
        ("nbds://h/x?tls-certificates=pki", "tls-certificates=DIR"),
        ("nbds://h/x?tls-certificates=/p&tls-hostname=", "tls-hostname=NAME"),
        ("nbds://h/x?tls-psk-file=/p", "tls-psk-file"),
        ("nbd://h/x?tls-certificates=/p", "a TLS parameter"),
    ] {
        assert_eq!(text.parse::<ExportUri>().expect_err(text).part, part, "{text}");
    }
    let long = format!("nbd://h/{}", "x".repeat(4097));
    assert_eq!(long.parse::<ExportUri>().expect_err("long").part, "the export name");
}

#[test]
fn a_path_is_not_taken_for_a_uri() {
    for (text, is_uri) in
        [("nbd://h/", true), ("NBDS:", true), ("./nbd", false), ("/a:b", false), ("nbdx://h", false)]
    {
        assert_eq!(ExportUri::is_meant_by(text), is_uri, "{text}");
    }
}
