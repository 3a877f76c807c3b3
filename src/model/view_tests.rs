use super::*;

const OLD: History = History { store: 7, term: 3 };

fn name(third: u8) -> String {
    format!("10.5.{third}.0-24")
}

fn record(third: u8, revision: Revision) -> Record {
    Record::decode(&name(third), br#"{"PublicIP":"192.168.0.1"}"#, None, 1, revision)
}

fn put(third: u8, revision: Revision) -> Change {
    Change::Put(record(third, revision))
}

fn delete(third: u8, revision: Revision) -> Change {
    Change::Delete { name: name(third).into(), revision }
}

/// Keys 1 and 2, last written at 8 and 9, listed at 10.
fn view() -> View {
    let mut view = View::default();
    assert_eq!((view.resume(), view.weigh(0, 10, OLD, &[])), (None, Answer::Fresh));
    view.settle(10, OLD, &[record(1, 8), record(2, 9)], Answer::Fresh);
    view
}

#[test]
fn news_is_what_is_newer_than_what_is_known_of_the_key() {
    let mut view = view();
    let news = vec![put(1, 11), delete(2, 13), put(3, 12)];
    assert_eq!(view.hear(news.clone()), news, "in another order than it happened is no reason to drop it");
    assert_eq!(view.hear(news), [], "each once");
    assert_eq!(view.hear(vec![put(1, 8), delete(1, 10), put(2, 12), delete(3, 12), put(4, 10)]), [], "nothing back");
    assert_eq!(view.hear(vec![put(2, 14)]), [put(2, 14)], "who comes again is there again");
    assert_eq!((view.len(), view.highest()), (3, 14));
}

#[test]
fn a_broken_watch_goes_on_with_the_last_revision_for_the_rest_of_it_may_be_lost() {
    let mut view = view();
    assert_eq!(view.resume(), Some(10));
    view.hear(vec![delete(1, 12)]);
    assert_eq!(view.resume(), Some(11));
    assert_eq!(view.hear(vec![delete(1, 12), delete(2, 12)]), [delete(2, 12)]);
    view.settle(40, OLD, &[], Answer::Fresh);
    assert_eq!(view.resume(), Some(40), "an audit vouches for all up to it");
    view.lose_track();
    assert_eq!(view.resume(), None);
}

#[test]
fn an_audit_finds_what_was_not_told_and_it_is_no_news_afterwards() {
    let mut view = view();
    let listed = [record(2, 12), record(3, 11)];
    let missed = vec![put(2, 12), put(3, 11), delete(1, 13)];
    assert_eq!(view.missed(13, &listed), missed);
    view.settle(13, OLD, &listed, Answer::Fresh);
    assert_eq!(view.missed(13, &listed), []);
    assert_eq!(view.hear(missed), []);
    assert_eq!(view.hear(vec![put(1, 14)]), [put(1, 14)]);
}

#[test]
fn an_audit_does_not_touch_what_is_later_than_its_list() {
    let mut view = view();
    view.hear(vec![delete(1, 12), put(2, 13), put(3, 14)]);
    let listed = [record(1, 8), record(2, 9)];
    assert_eq!(view.missed(11, &listed), []);
    view.settle(11, OLD, &listed, Answer::Fresh);
    assert_eq!((view.len(), view.resume(), view.highest()), (2, Some(13), 14));
    assert_eq!(view.hear(vec![put(1, 8), put(1, 11), put(2, 12), put(3, 13)]), [], "nor goes back on it afterwards");
}

#[test]
fn of_two_keys_that_read_alike_the_last_counts_and_is_not_missed_for_ever() {
    let mut view = view();
    let listed = [record(1, 8), record(2, 9), record(3, 12), record(3, 11)];
    assert_eq!(view.missed(12, &listed), [put(3, 11)]);
    view.settle(12, OLD, &listed, Answer::Fresh);
    assert_eq!(view.missed(12, &listed), []);
}

#[test]
fn an_answer_from_before_the_question_is_no_view_until_three_agree() {
    let mut view = view();
    view.hear(vec![put(3, 20)]);
    let old = |view: &mut View, revision| view.weigh(20, revision, OLD, &[]);
    assert_eq!(
        [old(&mut view, 15), old(&mut view, 15), old(&mut view, 19)].map(|a| a == Answer::Behind),
        [true, true, false]
    );
    view.settle(19, OLD, &[record(1, 8)], Answer::Rewritten);
    assert_eq!((view.len(), view.highest(), view.resume()), (1, 19, Some(19)));
}

#[test]
fn old_answers_that_do_not_agree_or_not_in_a_row_count_anew() {
    let mut view = view();
    view.hear(vec![put(3, 20)]);
    let answers = [15, 16, 12, 13, 20, 17, 18].map(|revision| view.weigh(20, revision, OLD, &[]));
    assert!(!answers.contains(&Answer::Rewritten), "{answers:?}");
    assert_eq!(answers[4], Answer::Fresh);
}

#[test]
fn what_was_told_while_a_list_was_on_its_way_does_not_make_it_old() {
    let mut view = view();
    let floor = view.highest();
    view.hear(vec![put(3, 20)]);
    assert_eq!(view.weigh(floor, 12, OLD, &[]), Answer::Fresh);
}

#[test]
fn another_history_is_known_by_its_store_and_by_elections_that_start_again() {
    let mut view = view();
    let of = |store, term| History { store, term };
    for (history, continues) in
        [(of(7, 3), true), (of(7, 4), true), (of(0, 0), true), (of(7, 2), false), (of(8, 9), false)]
    {
        assert_eq!(view.is_continued_by(history), continues, "{history:?}");
        assert_eq!(view.weigh(10, 30, history, &[]) == Answer::Fresh, continues, "{history:?}");
    }
}

#[test]
fn one_change_with_two_contents_is_in_two_histories() {
    let mut view = view();
    let value = br#"{"PublicIP":"192.168.0.1"}"#;
    let other = Record::decode(&name(1), value, crate::model::lease::LeaseId::new(7), 1, 8);
    assert_eq!(view.weigh(10, 30, OLD, &[other, record(2, 9)]), Answer::Rewritten);
    assert_eq!(view.weigh(10, 30, OLD, &[record(1, 8), record(2, 9)]), Answer::Fresh);
}

#[test]
fn a_key_that_goes_back_is_in_another_history_however_high_the_revision() {
    let mut view = view();
    assert_eq!(view.weigh(10, 30, OLD, &[record(1, 7), record(2, 30)]), Answer::Rewritten);
    assert_eq!(view.weigh(10, 30, OLD, &[record(1, 8), record(2, 30)]), Answer::Fresh);
    view.hear(vec![put(1, 12)]);
    assert_eq!(view.weigh(10, 11, OLD, &[record(1, 8)]), Answer::Fresh, "the list is from before that change");
}

#[test]
fn what_the_watch_tells_of_a_key_that_was_written_after_the_list_is_heard_though_no_news() {
    let mut view = View::default();
    view.settle(10, OLD, &[record(1, 8), record(2, 13)], Answer::Fresh);
    assert_eq!((view.highest(), view.resume()), (10, Some(10)), "what came between is still to be told");
    assert_eq!(view.hear(vec![put(3, 12), put(2, 13)]), [put(3, 12)]);
    assert_eq!((view.highest(), view.resume()), (13, Some(12)));
    assert_eq!(view.weigh(13, 12, OLD, &[]), Answer::Behind);
}

#[test]
fn keys_that_come_and_go_leave_nothing_behind() {
    let mut view = view();
    let mut revision = 10;
    for n in 0..100_000u32 {
        let name = format!("junk-{n}");
        let record = Record::decode(&name, b"", None, revision + 1, revision + 1);
        let changes = vec![Change::Put(record), Change::Delete { name: name.into(), revision: revision + 2 }];
        assert_eq!(view.hear(changes).len(), 2);
        revision += 2;
    }
    assert!(view.gone.len() <= MOST_GONE, "{}", view.gone.len());
    let long: Name = "x".repeat(1 << 20).into();
    view.hear(vec![Change::Delete { name: long.clone(), revision: revision + 1 }]);
    assert!(!view.gone.contains_key(&long));
    assert_eq!((view.len(), view.leases()), (2, 2));
}

#[test]
fn what_was_forgotten_does_not_come_back_by_a_straggler_or_an_older_list() {
    let mut view = view();
    view.hear(vec![put(3, 11), delete(3, 12)]);
    for n in 0..2 * MOST_GONE as Revision {
        view.hear(vec![Change::Delete { name: format!("junk-{n}").into(), revision: 13 + n }]);
    }
    assert!(!view.gone.contains_key(&*name(3)));
    assert_eq!(view.hear(vec![put(3, 11)]), []);
    let older = [record(1, 8), record(2, 9), record(3, 11)];
    assert_eq!(view.missed(11, &older), []);
    view.settle(11, OLD, &older, Answer::Fresh);
    assert_eq!((view.len(), view.hear(vec![put(3, 11)])), (2, vec![]));
    let highest = view.highest();
    view.settle(highest, OLD, &[record(1, 8), record(2, 9)], Answer::Fresh);
    assert_eq!(view.hear(vec![put(3, highest + 1)]), [put(3, highest + 1)]);
}

#[test]
fn leases_are_counted_among_junk() {
    let mut view = view();
    let junk = |revision| Record::decode("10.5.1.0-24", b"junk", None, 1, revision);
    view.hear(vec![Change::Put(junk(11)), put(3, 12), put(3, 13)]);
    assert_eq!((view.len(), view.leases()), (3, 2));
    view.hear(vec![delete(3, 14), put(1, 15)]);
    assert_eq!((view.len(), view.leases()), (2, 2));
    view.settle(20, OLD, &[junk(16), record(2, 9)], Answer::Fresh);
    assert_eq!((view.len(), view.leases()), (2, 1));
}
