"""EC2 and the instance metadata service, as this instance uses them.

`ec2.Ec2Cloud` implements `agent.ports.Cloud`, `imds.ImdsMetadata` implements `agent.ports.Metadata`. This is the only
home of aiobotocore, and of aiohttp, which aiobotocore brings.
"""
