"""What to do about the reasons that Kubernetes gives for a pod that does not run."""

from collections.abc import Mapping

_COMMAND = "see that the image has that command, and is for its node's processor"
_ELSEWHERE = "its volume is on a node or in a zone without room: add a node there"
_WEBHOOK = "a webhook refuses its pods, or does not answer"
_PRESSURE = "its node ran out of memory, disk or process ids"
_DISK = "it wrote more beside its volume than it may: find what it writes"
_FULL = "its node had no room any more: another pod is made"
_GONE = "its node does not take it any more: another pod is made"

ADVICE: Mapping[str, Mapping[str, str]] = {
    "ImagePullBackOff": {"": "see that the image exists and that the cluster may pull it"},
    "ErrImageNeverPull": {"": "its node has no such image, and may not pull it: imagePullPolicy"},
    "InvalidImageName": {"": "correct the name of the image"},
    "ImageInspectError": {"": "look at the container runtime of its node"},
    "CrashLoopBackOff": {"": "read the log of its last run: kubectl logs --previous"},
    "StartError": {"": _COMMAND},
    "ContainerCannotRun": {"": _COMMAND},
    "RunContainerError": {"": _COMMAND},
    "PostStartHookError": {"": "correct its postStart hook"},
    "OOMKilled": {"": "it needs more memory than its limit: raise the limit or the tier"},
    "CreateContainerConfigError": {
        "runAsNonRoot": "build the image with a numeric user that is not root",
        "couldn't find key": "add that key to the Secret or ConfigMap",
        "not found": "make the Secret or ConfigMap that it names",
    },
    "CreateContainerError": {"no command": "the image has no command: give it one"},
    "Unschedulable": {
        # What is first here no room on a node would help.
        "unbound immediate PersistentVolumeClaims": "its claim has no volume: see that its storage "
        "class exists and makes one",
        "is being deleted": "wait until its claim is gone, or see what still uses it",
        "bound to non-existent": "its volume is gone: restore it from a backup",
        "persistentvolumeclaim": "make the claim that it names",
        "didn't find available persistent volumes": "no volume fits its claim: make one, or see "
        "its storage class",
        "enough free storage": "no node has room for its volume: add storage",
        "max volume count": "no node takes another volume: add nodes",
        "ReadWriteOncePod": "another pod has its volume: wait for its end",
        "volume node affinity": _ELSEWHERE,
        "PersistentVolume's node affinity": _ELSEWHERE,
        "no available volume zone": _ELSEWHERE,
        "Too many pods": "no node takes another pod: add nodes",
        "Insufficient ": "no node has room: add nodes, or lower the instance's limits",
        "free ports": "its port is taken on every node: add nodes, or do without hostPort",
        "topology spread": "no node fits its topologySpreadConstraints",
        "affinity rules": "no node fits its affinity to other pods",
        "node affinity": "no node has the labels that it asks for",
        "requested node name": "there is no such node",
        "untolerated taint": "see why its nodes have that taint, or add a toleration",
        "were unschedulable": "its nodes take no pods: kubectl uncordon",
        "no nodes available": "the cluster has no node: add one",
    },
    "SchedulingGated": {"": "whoever set its scheduling gates has to remove them"},
    "CannotGrow": {
        "must support resize": "let its storage class expand volumes (allowVolumeExpansion), or "
        "move its data",
        "exceeded quota": "raise the quota of the namespace",
    },
    "FailedCreate": {
        "exceeded quota": "raise the quota of the namespace, or lower the instance's limits",
        "failed quota": "the quota of the namespace wants limits of every container",
        "PodSecurity": "the pod security of the namespace refuses its pods",
        "admission webhook": _WEBHOOK,
        "calling webhook": _WEBHOOK,
        "serviceaccount": "make the ServiceAccount that it names",
        "PriorityClass": "make the PriorityClass that it names",
        " per Container": "a LimitRange of the namespace refuses its limits",
    },
    "Evicted": {
        "low on resource": _PRESSURE,
        "had condition": _PRESSURE,
        "ephemeral": _DISK,
        "EmptyDir": _DISK,
    },
    "OutOfcpu": {"": _FULL},
    "OutOfmemory": {"": _FULL},
    "OutOfpods": {"": _FULL},
    "Preempting": {"": "a more important pod needed its node: another pod is made"},
    "NodeAffinity": {"": _GONE},
    "NodeShutdown": {"": _GONE},
    "Terminated": {"node shutdown": _GONE},
}
"""Reason -> part of its message -> what to do; the first part that it has is meant."""


def advice(reason: str, message: str) -> str:
    """What to do about a problem; empty where that is not known."""
    # What follows is about the pods that might make room.
    message = message.partition(" preemption: ")[0]
    fitting = (what for part, what in ADVICE.get(reason, {}).items() if part in message)
    return next(fitting, "")
