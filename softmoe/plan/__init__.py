"""What a config needs and costs on devices that are not here.

`python -m softmoe.plan` compiles the training and the inference step with the
target's own compiler, and reads memory, collectives and traffic off the result.
"""
