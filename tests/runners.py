"""A runner of training by torch's operators: what calls one is tested with it wherever no kernel runs."""

from fusedref.ops import by_torch


class TorchRunner:
    """Runs a problem by torch's operators, and notes which gradients were asked for."""

    saved_elements = 0

    def __init__(self, problem, *_):
        self.problem, self.options = problem, problem.conv_options
        self.forwards, self.needs = 0, []

    def forward(self, x, weight, bias, gamma, beta, scaling_factor, eps, running):
        self.forwards += 1
        y, mean, var, z = by_torch.forward(x, weight, bias, gamma, beta, scaling_factor, eps, self.options)
        if running is not None:
            running.update(mean, var, z[:, 0].numel())
        return y, mean, var, z

    def backward(self, dy, x, weight, bias, gamma, mean, var, saved, scaling_factor, eps, needs):
        self.needs.append(needs)
        training = saved is not None
        return by_torch.backward(
            dy, x, weight, bias, gamma, mean, var, saved, scaling_factor, eps, self.options, needs, training
        )
