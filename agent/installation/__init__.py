"""What the agent puts on its host for the container runtime: the plugin's executable and the network configuration.

conflist.py says what the configuration is, verdict.py when it should be there, files.py how a file is replaced;
publisher.py is the loop's step, __main__.py the init container's command.
"""
