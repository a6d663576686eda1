use super::*;

fn at(text: &str) -> Timestamp {
    Timestamp::from_millis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
}

/// The next times after a start, as UTC.
fn next(pattern: &str, zone: &str, start: &str, count: usize) -> Vec<String> {
    let recurrence = Recurrence::cron(pattern, zone).unwrap();
    let mut time = at(start);
    let mut all = Vec::new();
    for _ in 0..count {
        time = recurrence.next_after(time).unwrap();
        all.push(jiff::Timestamp::from_millisecond(time.as_millis()).unwrap().to_string());
    }
    all
}

#[test]
fn patterns_mean_the_clocks_of_their_zone() {
    let cases: [(&str, &str, &str, &[&str]); 8] = [
        (
            "0 9 * * MON-FRI",
            "Europe/Berlin",
            "2026-01-02T08:00:00Z", // a Friday, 09:00 there: not that one again
            &["2026-01-05T08:00:00Z", "2026-01-06T08:00:00Z"],
        ),
        ("0 9 * * *", "America/New_York", "2026-07-01T00:00:00Z", &["2026-07-01T13:00:00Z"]),
        ("*/15 * * * *", "UTC", "2026-01-01T00:07:00.250Z", &["2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z"]),
        ("*/20 * * * * *", "UTC", "2026-01-01T00:00:45Z", &["2026-01-01T00:01:00Z", "2026-01-01T00:01:20Z"]),
        ("0 0 L * *", "UTC", "2028-02-01T00:00:00Z", &["2028-02-29T00:00:00Z", "2028-03-31T00:00:00Z"]),
        ("0 12 * * FRI#2", "UTC", "2026-05-01T00:00:00Z", &["2026-05-08T12:00:00Z", "2026-06-12T12:00:00Z"]),
        ("@daily", "Asia/Kolkata", "2026-01-01T00:00:00Z", &["2026-01-01T18:30:00Z"]),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]),
    ];
    for (pattern, zone, start, expected) in cases {
        assert_eq!(next(pattern, zone, start, expected.len()), expected, "{pattern} {zone}");
    }
}

/// Berlin's clocks go from 02:00 to 03:00 on 29 March 2026 (01:00 UTC), and from 03:00 to 02:00 on 25 October (01:00 UTC).
#[test]
fn clocks_that_are_moved() {
    let cases: [(&str, &str, &[&str]); 5] = [
        // The hour is left out: right after the gap, at 03:00, and the next day at its time.
        ("30 2 * * *", "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]),
        ("*/30 * * * *", "2026-03-29T00:15:00Z", &["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z"]),
        // The hour comes twice: a time of day once, what comes every so often both times.
        ("30 2 * * *", "2026-10-24T12:00:00Z", &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]),
        (
            "*/30 * * * *",
            "2026-10-25T00:15:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:00:00Z"],
        ),
        // A time of day beside the change stays at its time of day.
        ("0 9 * * *", "2026-03-28T12:00:00Z", &["2026-03-29T07:00:00Z"]),
    ];
    for (pattern, start, expected) in cases {
        assert_eq!(next(pattern, "Europe/Berlin", start, expected.len()), expected, "{pattern} from {start}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let cases = [
        ("", "UTC", "cron pattern \"\""),
        ("* * * *", "UTC", "minute hour"),
        ("61 * * * *", "UTC", "cron pattern \"61 * * * *\""),
        ("0 9 * * * * 2027", "UTC", "cron pattern"),
        ("0 9 * * *", "Europe/Atlantis", "time zone \"Europe/Atlantis\""),
    ];
    for (pattern, zone, expected) in cases {
        let error = Recurrence::cron(pattern, zone).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let long = "1,".repeat(MAX_PATTERN_BYTES);
    assert!(Recurrence::cron(&long, "UTC").unwrap_err().to_string().contains("shorten"));
    let never = Recurrence::cron("0 0 30 2 *", "UTC").unwrap();
    assert_eq!(never.next_after(at("2026-01-01T00:00:00Z")), None);
    let end = Recurrence::cron("@daily", "UTC").unwrap();
    assert_eq!(end.next_after(Timestamp::from_millis(i64::MAX)), None, "beyond every calendar");
}
