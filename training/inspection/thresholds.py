"""When a check of an inspection speaks: every threshold in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InspectionThresholds:
    """Thresholds of `inspect_dataset`; all are our choice, made so that clean teleoperation and simulation stay silent.

    A dim's *range* is that of its middle 98 % (q99 - q01), so that one outlier does not make all else look still.

    Args:
        still_range: a dim stands still while it stays within this share of its range of where it was: above the noise
            of encoders, and crossed by a moving robot in a step or two.
        idle_share: idle steps at starts and ends may be this share of all; more teaches a policy to wait.
        outlier_ranges: how many ranges beyond q01 or q99 a value lies outside; 3 is a normalised input of 7.
        jump_range: a jump crosses at least this share of the range within one step ...
        jump_factor: ... and so many times what 99 % of that dim's steps cross: no motor did that.
        switch_share: a dim of which so many values lie at one of two levels is a switch (a gripper): it may jump.
        saturated_share: share of steps exactly at a dim's least or greatest value.
        normalized_limit: a normalised value beyond it makes a loss explode (openpi#814).
        duplicate_distance: root mean square distance, in ranges, below which two episodes are the same motion.
        period_tolerance: share of the control period by which a time step may be off; video frames are found within
            half a period.
        irregular_share: share of time steps that may be off before it is said.
        rate_tolerance: share by which the median time step may differ from the declared rate.
        agreement: share of an action's variance that the state has to explain for the two to be related that way; below
            `velocity_agreement` for the looser relation of a velocity or scaled command.
        velocity_agreement: see `agreement`; a controller's own dynamics stand between such a command and the motion.
        longest_lag: seconds between action and state that are searched.
        copy_distance: actions that differ from the state of the same step by less, in ranges, are that state.
        predictable_share: instructions guessed right this often from an episode's start are determined by it ...
        predictable_gain: ... when that is so much more often than by always guessing the most frequent one.
        least_episodes: episodes below which nothing is said about how predictable instructions are.
        odd_length: an episode so many times shorter or longer than the median is odd.
        frame_budget: camera frames that are decoded at most, in all; half for first frames, half for frozen cameras.
        frames_per_episode: frames that are compared in an episode to find a frozen camera.
        frozen_level: greatest difference, in grey levels of 255 of the mean over a 32nd of width and height, between
            two pictures that are the same picture; a moving gripper changes some block by far more.
        moved_range: share of its range that some dim must have moved between two frames for a difference to be due.
        blank_level: standard deviation in grey levels below which a picture is blank.
    """

    still_range: float = 0.02
    idle_share: float = 0.10
    outlier_ranges: float = 3.0
    jump_range: float = 0.5
    jump_factor: float = 10.0
    switch_share: float = 0.9
    saturated_share: float = 0.25
    normalized_limit: float = 10.0
    duplicate_distance: float = 0.01
    period_tolerance: float = 0.2
    irregular_share: float = 0.01
    rate_tolerance: float = 0.05
    agreement: float = 0.8
    velocity_agreement: float = 0.4
    longest_lag: float = 0.5
    copy_distance: float = 1e-4
    predictable_share: float = 0.9
    predictable_gain: float = 0.2
    least_episodes: int = 10
    odd_length: float = 4.0
    frame_budget: int = 400
    frames_per_episode: int = 8
    frozen_level: float = 1.0
    moved_range: float = 0.05
    blank_level: float = 2.0


__all__ = ["InspectionThresholds"]
