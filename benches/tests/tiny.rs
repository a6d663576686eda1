//! Every configuration of the benchmark, run once in small and checked.
#![expect(clippy::unwrap_used, reason = "a test may fail by a panic")]

use cuemq_benches::configuration::{Configuration, Path};
use cuemq_benches::paths;
use cuemq_benches::place::Place;
use cuemq_benches::profile::Profile;

fn run(path: Path) {
    let directory = tempfile::tempdir().unwrap();
    let (profile, place) = (Profile::tiny(), Place::at(directory.path().join("stores")).unwrap());
    for configuration in Configuration::all(&profile).iter().filter(|c| c.path == path) {
        let mut rig = paths::build(configuration, &profile, &place).unwrap();
        for iterations in [1, 6] {
            let time = rig.run(iterations).unwrap_or_else(|error| panic!("{configuration}: {error}"));
            assert!(!time.is_zero(), "{configuration} takes time");
        }
        let checked = rig.finish().unwrap_or_else(|error| panic!("{configuration}: {error}"));
        assert!(checked >= configuration.messages_per_iteration(), "{configuration} checked {checked} messages");
        drop(rig);
        let left = std::fs::read_dir(place.directory()).unwrap().count();
        assert_eq!(left, 0, "{configuration} leaves nothing behind");
    }
}

macro_rules! paths {
    ($($test:ident => $path:ident,)*) => {$(
        #[test]
        fn $test() {
            run(Path::$path);
        }
    )*};
}

paths! {
    append_buffered => AppendBuffered,
    append_durable => AppendDurable,
    group_commit => GroupCommit,
    send_single => SendSingle,
    send_batch => SendBatch,
    end_to_end => EndToEnd,
    fetch_tail => FetchTail,
    fetch_cold => FetchCold,
    reopen_clean => ReopenClean,
    reopen_dropped => ReopenDropped,
}
