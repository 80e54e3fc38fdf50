"""The rule of the HorizontalPodAutoscaler, step by step by hand."""

from optkit.costs.policies import Autoscaled, Scaler, desired_replicas


def test_the_desired_number_is_the_ceiling_of_current_times_metric_over_target():
    # the examples of the Kubernetes documentation: 200m against 100m doubles, 50m against 100m halves
    assert desired_replicas(3, 3 * 200, 100, 0.1) == 6
    assert desired_replicas(4, 4 * 50, 100, 0.1) == 2
    assert desired_replicas(50, 50 * 90, 75, 0.1) == 60
    assert desired_replicas(10, 10 * 109, 100, 0.1) == 10
    assert desired_replicas(10, 10 * 111, 100, 0.1) == 12
    assert desired_replicas(3, 0, 100, 0.1) == 0


def test_scaling_down_takes_the_highest_number_wanted_within_its_window():
    scaler = Scaler(Autoscaled(target=1.0, min_replicas=1, max_replicas=20, down_window_s=45.0))
    loads = [(15, 4, 8.0), (30, 8, 2.0), (45, 8, 5.0), (60, 8, 2.0), (75, 8, 2.0), (90, 5, 2.0), (105, 5, 2.0)]
    # wanted 8, 2, 5, 2, 2, 2, 2: 8 is within 45 s until 60, 5 until 90
    assert [scaler.decide(*load) for load in loads] == [8, 8, 8, 8, 5, 5, 2]


def test_scaling_up_takes_the_lowest_number_wanted_within_its_window():
    scaler = Scaler(Autoscaled(target=1.0, min_replicas=1, max_replicas=20, up_window_s=30.0, down_window_s=0.0))
    loads = [(15, 2, 2.0), (30, 2, 6.0), (45, 2, 5.0), (60, 2, 4.0)]
    assert [scaler.decide(*load) for load in loads] == [2, 2, 2, 4]


def test_a_step_up_is_at_most_four_replicas_or_twice_as_many():
    scaler = Scaler(Autoscaled(target=1.0, min_replicas=1, max_replicas=30))
    assert [scaler.decide(15, 1, 25.0), scaler.decide(30, 5, 25.0), scaler.decide(45, 10, 25.0)] == [5, 10, 20]
    assert scaler.decide(60, 20, 99.0) == 30


def test_the_number_stays_within_its_bounds():
    scaler = Scaler(Autoscaled(target=1.0, min_replicas=3, max_replicas=6, down_window_s=0.0))
    assert [scaler.decide(15, 4, 0.0), scaler.decide(30, 3, 9.0)] == [3, 6]
